"""The matching methods of the package. A new method is one function and one entry of `METHODS`.

`registry` adds those from outside the package to the same table. Entries refer to their function as `module:name`, so
that help texts can list the methods without loading torch.
"""

from typing import Any

from hf_zipit.matching.method import Method

_ZIP: dict[str, Any] = {"within": True, "sized": True, "options": ("alpha", "beta", "compat")}
_PERMUTE: dict[str, Any] = {"options": ("compat",)}
_ROOM = "hf_zipit.matching"
_DELTAS = "hf_zipit.deltas"
_AVERAGE = f"{_ROOM}.average:average_match"
_BASED: dict[str, Any] = {"fixed": True, "options": ("scale",)}
_CONTROL: dict[str, Any] = {"fixed": True, "control": True, "unequal": True}

METHODS: dict[str, Method] = {
    "zip": Method(
        f"{_ROOM}.zip:zip_match",
        "merge the most similar units greedily, across and within models (ZipIt!, section 4)",
        activations=True,
        unequal=True,
        **_ZIP,
    ),
    "select": Method(
        f"{_ROOM}.select:select_match",
        "keep the units that best predict the inputs of the next layers, and merge the others into them",
        activations=True,
        within=True,
        sized=True,
        read=True,
        heads=True,
        unequal=True,
    ),
    "permute": Method(
        f"{_ROOM}.permute:permute_match",
        "align units one-to-one across models by activations (Li et al., 2015)",
        activations=True,
        unequal=True,
        **_PERMUTE,
    ),
    "partial-ot": Method(
        f"{_ROOM}.partial:partial_match",
        "as permute; with a width above 1, the best pairs of two models, and the rest apart (Partial Fusion, 2026)",
        activations=True,
        sized=True,
        paired=True,
        unequal=True,
    ),
    "cca": Method(
        f"{_ROOM}.cca:cca_match",
        "map units linearly to the first model's along canonical correlations, an approximation behind activation "
        "functions (CCA-Merge, Horoi et al., 2024)",
        activations=True,
        covariance=True,
        dense=True,
    ),
    "ot": Method(
        f"{_ROOM}.ot:ot_match",
        "align units softly to the first model's by optimal transport, an approximation behind activation functions "
        "(OTFusion, Singh and Jaggi, 2020)",
        activations=True,
        dense=True,
        read=True,
        unequal=True,
        options=("temperature", "masses"),
    ),
    "average": Method(_AVERAGE, "average the weights without matching, unit i with unit i", fixed=True),
    "task-arithmetic": Method(
        _AVERAGE,
        "add the differences to the base (Ilharco et al., 2023)",
        rule=f"{_DELTAS}.rules:task_arithmetic",
        **_BASED,
    ),
    "ties": Method(
        _AVERAGE,
        "add the largest differences to the base, where their signs agree (Yadav et al., 2023)",
        rule=f"{_DELTAS}.rules:ties",
        **{**_BASED, "options": ("scale", "density")},
    ),
    "dare": Method(
        _AVERAGE,
        "add random differences to the base, scaled up (Yu et al., 2024)",
        rule=f"{_DELTAS}.rules:dare",
        **{**_BASED, "options": ("scale", "density", "seed")},
    ),
    "tsv": Method(
        _AVERAGE,
        "add the leading singular vectors of all differences, made orthogonal (TSV-M, Gargiulo et al., 2025)",
        rule=f"{_DELTAS}.spectral:tsv",
        **_BASED,
    ),
    "iso-c": Method(
        _AVERAGE,
        "add the sum of the differences with equal singular values (Marczak et al., 2025)",
        rule=f"{_DELTAS}.spectral:iso_c",
        **_BASED,
    ),
    "iso-cts": Method(
        _AVERAGE,
        "as iso-c, with directions of each task among them (Marczak et al., 2025)",
        rule=f"{_DELTAS}.spectral:iso_cts",
        **_BASED,
    ),
    "wudi": Method(
        _AVERAGE,
        "add the differences that interfere least, in closed form (WUDI, Cheng et al., 2025)",
        rule=f"{_DELTAS}.spectral:wudi",
        **_BASED,
    ),
    "regmean": Method(
        _AVERAGE,
        "solve for weights by least squares on the models' inputs; needs no base (Jin et al., 2023)",
        rule=f"{_DELTAS}.regmean:regmean",
        fixed=True,
        observes=True,
    ),
    "regmean-sequential": Method(
        _AVERAGE,
        "as regmean, on the inputs that layers have in the merge (RegMean++, 2025); a data set per model",
        rule=f"{_DELTAS}.regmean:regmean_sequential",
        fixed=True,
        observes=True,
    ),
    "optimal": Method(
        f"{_ROOM}.optimal:optimal_match",
        "merge optimal pairs, across and within models (ZipIt!, section 5)",
        activations=True,
        within=True,
        seconds=12,
    ),
    "kmeans": Method(
        f"{_ROOM}.kmeans:kmeans_match",
        "cluster units by k-means (ZipIt!, section 5)",
        activations=True,
        within=True,
        sized=True,
        unequal=True,
    ),
    "git-rebasin": Method(
        f"{_ROOM}.permute:permute_match",
        "align units one-to-one across models by weights (Ainsworth et al., 2023)",
        weights=True,
        **_PERMUTE,
    ),
    "c2m3": Method(
        f"{_ROOM}.universe:universe_match",
        "align all models and layers at once, by weights, the same in any order of the models (C2M3, 2024)",
        weights=True,
        at_once=True,
        options=("sweeps",),
    ),
    "weight-zip": Method(
        f"{_ROOM}.zip:zip_match",
        "as zip, by weights (MuDSC, section 4)",
        weights=True,
        **_ZIP,
    ),
    "weight-kmeans": Method(
        f"{_ROOM}.kmeans:kmeans_match",
        "cluster units by k-means, by weights (model folding, Wang et al., 2025)",
        weights=True,
        within=True,
        sized=True,
    ),
    "mudsc-align": Method(
        f"{_ROOM}.permute:permute_match",
        "as permute, by activations and weights (MuDSC, 2024)",
        activations=True,
        weights=True,
        **_PERMUTE,
    ),
    "mudsc-zip": Method(
        f"{_ROOM}.zip:zip_match",
        "as zip, by activations and weights (MuDSC, 2024)",
        activations=True,
        weights=True,
        **_ZIP,
    ),
    "first-parent": Method(
        f"{_ROOM}.controls:parent_match",
        "keep the trunk of the first parent, with one head per task",
        settings={"parent": 0},
        **_CONTROL,
    ),
    "last-parent": Method(
        f"{_ROOM}.controls:parent_match",
        "keep the trunk of the last parent, with one head per task",
        settings={"parent": -1},
        **_CONTROL,
    ),
    "random": Method(f"{_ROOM}.controls:random_match", "match units one-to-one at random", **_CONTROL),
}

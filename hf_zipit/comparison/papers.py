"""The rows of papers' tables, with the papers' settings: `--methods paper:NAME`. A paper is one entry of `PAPERS`.

Each row is a method with its calibration and options, as in a recipe; a preset stands for those that it sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_zipit.calibration.presets import expanded
from hf_zipit.errors import OptionError

PREFIX = "paper:"
CONTROLS = ("random", "first-parent", "last-parent")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Paper:
    """The rows of a paper's table.

    Attributes:
        source: the paper and its tables.
        rows: for each row the options of its merge, as in a recipe.
    """

    source: str
    rows: tuple[Row, ...]


def _rows(methods: Sequence[str], calibrate: str, **options: Any) -> tuple[Row, ...]:
    """A row for each method."""
    return tuple({"method": method, "calibrate": calibrate, **options} for method in methods)


PAPERS: dict[str, Paper] = {
    "zipit": Paper(
        "ZipIt! (Stoica et al., ICLR 2024), tables 1, 2, 10, 11 and 14; give --cuts for partial zips",
        (
            *_rows(["average", "git-rebasin"], "batchnorm"),  # norms are reset for all methods (section 5)
            *_rows(["permute"], "batchnorm", compat=True),
            *_rows(["zip"], "batchnorm", alpha=0.1, beta=0.8, compat=True),  # alpha of table 8, beta of section 5.3
        ),
    ),
    "mudsc": Paper(
        "MuDSC (Xu et al., CVPR 2024), homogeneous tasks; the balance is searched",
        (
            *_rows(["average"], "batchnorm"),
            *_rows(["git-rebasin", "permute"], "batchnorm", compat=True),
            *_rows(["mudsc-align"], "batchnorm", balance="auto", compat=True),
            *_rows(["zip", "weight-zip"], "batchnorm", compat=True),
            {"preset": "mudsc", "compat": True},
        ),
    ),
    "rebasin": Paper(
        "Git Re-Basin (Ainsworth et al., ICLR 2023), with and without REPAIR (Jordan et al., ICLR 2023)",
        (*_rows(["average", "git-rebasin"], "none"), *_rows(["average"], "repair"), {"preset": "git-rebasin"}),
    ),
    "folding": Paper(
        "model folding (Wang et al., ICLR 2025), merges of two networks; repair-weights is its data-free Fold-AR",
        (
            *_rows(["git-rebasin", "zip"], "repair"),
            *_rows(["weight-kmeans"], "repair-weights"),
            *_rows(["weight-kmeans"], "repair"),
        ),
    ),
    "cca-merge": Paper(
        "CCA-Merge (Horoi et al., ICML 2024), the methods that it compares for two models",
        _rows(["average", "git-rebasin", "permute", "ot", "zip", "cca"], "batchnorm"),
    ),
    "c2m3": Paper(
        "C2M3 (Crisostomi et al., NeurIPS 2024), without and with REPAIR; git-rebasin in place of MergeMany",
        (
            *_rows(["average", "git-rebasin", "c2m3"], "none"),
            *_rows(["average", "git-rebasin"], "repair"),
            {"preset": "c2m3"},
        ),
    ),
    "partial-fusion": Paper(
        "Partial Fusion (ICML 2026), the sizes of its curve, 1 + a",
        tuple(row for width in (1.0, 1.4, 1.5, 1.8) for row in _rows(["partial-ot"], "batchnorm", width=width)),
    ),
    "pleas": Paper(
        "PLeaS (Nasery et al., CVPR 2025), full merges",
        (
            *_rows(["average", "regmean", "git-rebasin", "zip"], "batchnorm"),
            {"preset": "mudsc"},
            {"preset": "pleas"},
        ),
    ),
}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a paper's table: its own, and the controls with each of its calibrations.

    Args:
        name: of the paper, with or without `paper:`.

    Raises:
        OptionError: no paper has this name.

    >>> [row["method"] for row in rows_of("paper:rebasin")][:2]
    ['average', 'git-rebasin']
    """
    paper = PAPERS.get(name.removeprefix(PREFIX))
    if paper is None:
        raise OptionError(f"unknown paper '{name.removeprefix(PREFIX)}'; papers: {', '.join(PAPERS)}")
    whole = [expanded(row) for row in paper.rows]
    found = [{"method": row["method"], "calibrate": row["calibrate"], **row} for row in whole]
    for row in found:
        row.pop("preset", None)
    calibrations = dict.fromkeys(row["calibrate"] for row in found)
    return [*found, *(row for name in calibrations for row in map(dict, _rows(CONTROLS, name)))]

"""ZipIt!'s matching: greedy, across and within models."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.greedy import Budget, greedy_zip
from hf_zipit.transform.match import Match, check_sizes


def zip_match(
    similarity: Tensor,
    sizes: Sequence[int],
    *,
    alpha: float = 0.1,
    beta: float = 0.8,
    keep: int | None = None,
    compat: bool = False,
    budget: Budget | None = None,
) -> Match:
    """Greedily merge the most similar units, across and within models (ZipIt!, section 4.3 and appendix B).

    The most similar pair of clusters is merged until `keep` clusters remain. The similarity of two clusters is that of
    their least similar members, times `alpha` for each merge that left a cluster with N or more units. For each of the
    N models, at most `beta * (n - keep) / N` merges may bring two of its units together.

    With `beta=0` no cluster holds two units of a model, unless `keep` is below a model's size, which forces it. No
    unit is ever dropped, and but for ties the result does not depend on the order of the models. Takes O(n^2) time and
    memory.

    Args:
        similarity: `(n, n)`, units of model 0 first; larger is more similar. The diagonal is ignored.
        sizes: Units of each model, `sum(sizes) == n`.
        alpha: Factor on the similarity of a cluster each time it grows to N units or more, for N models, in [0, 1];
            small values favor clusters of few units.
        beta: Share of the merges that may happen within a model, in [0, 1].
        keep: Merged units; the mean of `sizes` by default.
        compat: Follow the authors' code exactly: its ties, order, budgets and dropped units.
        budget: With `compat`, a budget that all groups of one space share; updated in place. By default this match
            has a budget of its own.

    Returns:
        A match of width `keep`, clusters ordered by their first unit. `score` is the mean of the similarities,
        penalties included, at which clusters were merged.

    Raises:
        OptionError: `alpha`, `beta` or `keep` is out of range, or the similarity has another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> zip_match(s, [2, 2], alpha=0.1, beta=0.8).labels
    tensor([0, 1, 0, 1])
    """
    sizes, keep = check_sizes(similarity, sizes, keep)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value:g}: it must lie between 0 and 1")
    if compat and keep * len(sizes) != sum(sizes):
        raise OptionError(
            f"keep={keep}: compat=True merges to the width of one model only, {sum(sizes) // len(sizes)}; leave out "
            "compat for other widths"
        )
    if compat and budget is None:
        budget = Budget.of(sizes, beta, keep)
    labels, score = greedy_zip(similarity.detach().cpu().numpy(), sizes, alpha, beta, keep, budget)
    return Match(torch.from_numpy(labels), sizes, keep, score)

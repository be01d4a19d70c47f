"""Matching: a similarity of all models' units -> which merged unit each of them becomes. Tensors only.

A new method is one function `(similarity, sizes, ...) -> Match` and one line in `METHODS` (`methods.py`).
"""

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
    """Greedy matching across and within models (ZipIt!, section 4.3 and appendix B), in O(n^2) time and memory.

    Merges the most similar pair of clusters until `keep` are left. A merged cluster is as similar to another as the
    least similar of its members, times `alpha` for each merge that gave it N or more units. At most
    `beta * (n - keep) / N` merges may bring two units of model k together, for each k. With `beta=0` no cluster holds
    two units of a model (unless `keep` is below a model's size, which forces it); no unit is ever dropped; the result
    does not depend on the order of the models.

    Args:
        similarity: `(n, n)`, units of model 0 first; larger is more alike. The diagonal is ignored.
        sizes: units per model, `sum(sizes) == n`.
        alpha: in [0, 1]; small values favour merges of few units.
        beta: in [0, 1].
        keep: merged units; the mean of `sizes` by default.
        compat: follow the authors' code exactly instead: its ties, order, budgets and dropped units.
        budget: under `compat`, the budget that the groups of one space share; by default this match's own.

    Raises:
        OptionError: alpha, beta or keep out of range, or a similarity of another shape.

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
            f"keep={keep}: compat=True reproduces merges to one model's width, {sum(sizes) // len(sizes)}"
        )
    if compat and budget is None:
        budget = Budget.of(sizes, beta, keep)
    labels, score = greedy_zip(similarity.detach().cpu().numpy(), sizes, alpha, beta, keep, budget)
    return Match(torch.from_numpy(labels), sizes, keep, score)

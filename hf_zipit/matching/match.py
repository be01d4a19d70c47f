"""Matching: a similarity of all models' units -> which merged unit each of them becomes. Tensors only.

A new method is one function `(similarity, sizes, ...) -> Match` and one line in `METHODS` (`methods.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.greedy import Budget, Labels, greedy_zip

UnitMatch = Callable[[Tensor, Sequence[int]], "Match"]


@dataclass(frozen=True, eq=False)
class Match:
    """Which merged unit every unit of every model becomes.

    `labels` has shape `(n,)` with values in `0 .. width - 1`, the units of model 0 first, then model 1, and so on;
    `sizes` gives the number of units of each model. A label of -1 is a unit that was dropped (reference behaviour,
    only under `compat=True`). `score` is the mean similarity of what was merged, as the method counts it. Where `kept
    (n,)` is given, a refit aims at the kept members of a merged unit alone.

    >>> match = Match(torch.tensor([0, 1, 1, 0]), (2, 2), 2)
    >>> match.merge
    tensor([[0.5000, 0.0000, 0.0000, 0.5000],
            [0.0000, 0.5000, 0.5000, 0.0000]])
    """

    labels: Tensor
    sizes: tuple[int, ...]
    width: int
    score: float = 0.0
    kept: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """How many units each merged unit has, `(m,)`."""
        return torch.bincount(self.labels[self.labels >= 0], minlength=self.width)

    @property
    def unmerge(self) -> Tensor:
        """`U`, shape `(n, m)`: one-hot rows, a row of zeros for a dropped unit."""
        return (self.labels[:, None] == torch.arange(self.width)).float()

    @property
    def merge(self) -> Tensor:
        """`M`, shape `(m, n)`: the mean over each merged unit's members."""
        return (self.unmerge / self.counts.clamp(min=1)).T

    @property
    def aim(self) -> "Match":
        """The match whose means a refit aims at: of the kept units alone."""
        if self.kept is None:
            return self
        return replace(self, labels=self.labels.masked_fill(~self.kept, -1), kept=None)

    def of(self, model: int) -> Tensor:
        """The labels of one model's units, `(sizes[model],)`."""
        return torch.split(self.labels, list(self.sizes))[model]

    def composition(self) -> dict[str, int]:
        """How many merged units are `shared` by several models, or `alone` with one unit, or `within` one model."""
        members = torch.stack(
            [torch.bincount(x[x >= 0], minlength=self.width) for x in torch.split(self.labels, list(self.sizes))]
        )
        shared = (members > 0).sum(0) > 1
        single = members.sum(0) == 1
        return {
            "shared": int(shared.sum()),
            "within": int((~shared & ~single).sum()),
            "alone": int((~shared & single).sum()),
        }


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


def permute_match(similarity: Tensor, sizes: Sequence[int], *, compat: bool = False) -> Match:
    """Align the models one-to-one by assignments that maximise the summed similarity (eq. 3).

    Two models: the optimum. More: every model is first aligned to the one that is most alike to all others; then,
    time after time, the model that gains most is aligned anew to the sum of all others, until none gains. That sum
    over all pairs of models never falls, and the result does not depend on the models' order.

    Args:
        similarity: `(n, n)`, units of model 0 first.
        sizes: units per model, all the same.
        compat: align every model to the first one, as the authors' code does.

    >>> permute_match(torch.tensor([[1, 0, 0, 0.9], [0, 1, 0.9, 0], [0, 0.9, 1, 0], [0.9, 0, 0, 1]]), [2, 2]).labels
    tensor([0, 1, 1, 0])
    """
    sizes, _ = check_sizes(similarity, sizes, None)
    width, models = _equal(sizes, "permute"), range(len(sizes))
    values = similarity.detach().cpu().double().numpy().reshape(len(sizes), width, len(sizes), width)
    pairs = {(0, k): _assign(values[0, :, k]) for k in models[1:]}
    score = float(np.mean([values[0, range(width), k, pairs[0, k]].mean() for k in models[1:]]))
    columns = np.stack([np.arange(width), *(pairs[0, k] for k in models[1:])])  # (N, width): model k's unit at place m
    if len(sizes) > 2 and not compat:
        columns = _jointly(values, pairs)
    labels = torch.from_numpy(np.argsort(columns, axis=1).reshape(-1))
    return Match(labels, sizes, width, score)


def _assign(scores: NDArray[np.float64]) -> Labels:
    """The column of every row in the assignment with the largest sum."""
    columns: Labels = linear_sum_assignment(scores, maximize=True)[1]
    return columns


def _jointly(values: NDArray[np.float64], pairs: dict[tuple[int, int], Labels]) -> Labels:
    """Which unit of each model sits at each place, `(N, width)`; the first model's units keep their order."""
    n, width = values.shape[:2]
    rows = np.arange(width)
    for i in range(1, n):
        pairs |= {(i, j): _assign(values[i, :, j]) for j in range(i + 1, n)}
    pairs |= {(j, i): np.argsort(columns) for (i, j), columns in pairs.items()}
    totals = [sum(values[i, rows, j, pairs[i, j]].sum() for j in range(n) if j != i) for i in range(n)]
    hub = int(np.argmax(totals))
    seats = np.stack([rows if k == hub else pairs[hub, k] for k in range(n)])
    while True:
        gains, found = [], []
        for k in range(n):
            others = sum(values[j, seats[j], k] for j in range(n) if j != k)  # (width, units of k)
            found.append(_assign(others))
            gains.append(others[rows, found[k]].sum() - others[rows, seats[k]].sum())
        best = int(np.argmax(gains))
        if gains[best] <= 1e-9 * width:
            return seats[:, np.argsort(seats[0])]
        seats[best] = found[best]


def average_match(sizes: Sequence[int]) -> Match:
    """Unit i of every model becomes merged unit i: plain weight averaging.

    >>> average_match([2, 2]).labels
    tensor([0, 1, 0, 1])
    """
    width = _equal(tuple(sizes), "average")
    return Match(torch.arange(width).repeat(len(sizes)), tuple(sizes), width)


def check_sizes(similarity: Tensor, sizes: Sequence[int], keep: int | None) -> tuple[tuple[int, ...], int]:
    """The sizes as a tuple, and how many merged units there will be: the mean of the sizes by default.

    Raises:
        OptionError: the similarity has another shape, or `keep` is out of range.
    """
    sizes, total = tuple(int(s) for s in sizes), sum(sizes)
    if similarity.shape != (total, total):
        raise OptionError(f"similarity has shape {tuple(similarity.shape)}, the sizes {list(sizes)} need {total} rows")
    keep = round(total / len(sizes)) if keep is None else keep
    if not 1 <= keep <= total:
        raise OptionError(f"keep is {keep}: between 1 and {total} merged units are possible")
    return sizes, keep


def _equal(sizes: tuple[int, ...], method: str) -> int:
    if len(set(sizes)) != 1:
        raise OptionError(f"{method} needs models of one width, not {list(sizes)}")
    return sizes[0]

"""Matching: a similarity of all models' units -> which merged unit each of them becomes. Tensors only.

A new method is one function `(similarity, sizes, ...) -> Match` and one line in `METHODS` (`methods.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.greedy import greedy_zip

UnitMatch = Callable[[Tensor, Sequence[int]], "Match"]


@dataclass(frozen=True, eq=False)
class Match:
    """Which merged unit every unit of every model becomes.

    `labels` has shape `(n,)` with values in `0 .. width - 1`, the units of model 0 first, then model 1, and so on;
    `sizes` gives the number of units of each model. A label of -1 is a unit that was dropped (reference behaviour,
    only under `compat=True`).

    >>> match = Match(torch.tensor([0, 1, 1, 0]), (2, 2), 2)
    >>> match.merge
    tensor([[0.5000, 0.0000, 0.0000, 0.5000],
            [0.0000, 0.5000, 0.5000, 0.0000]])
    """

    labels: Tensor
    sizes: tuple[int, ...]
    width: int

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

    Raises:
        OptionError: alpha, beta or keep out of range, or a similarity of another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> zip_match(s, [2, 2], alpha=0.1, beta=0.8).labels
    tensor([0, 1, 0, 1])
    """
    sizes, keep = _checked(similarity, sizes, keep)
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise OptionError(f"{name} is {value:g}: it must lie between 0 and 1")
    if compat and keep * len(sizes) != sum(sizes):
        raise OptionError(
            f"keep={keep}: compat=True reproduces merges to one model's width, {sum(sizes) // len(sizes)}"
        )
    labels = greedy_zip(similarity.detach().cpu().numpy(), sizes, alpha, beta, keep, compat)
    return Match(torch.from_numpy(labels), sizes, keep)


def permute_match(similarity: Tensor, sizes: Sequence[int]) -> Match:
    """Align every model to the first by the assignment that maximises the summed similarity (eq. 3).

    >>> permute_match(torch.tensor([[1, 0, 0, 0.9], [0, 1, 0.9, 0], [0, 0.9, 1, 0], [0.9, 0, 0, 1]]), [2, 2]).labels
    tensor([0, 1, 1, 0])
    """
    sizes, _ = _checked(similarity, sizes, None)
    width = _equal(sizes, "permute")
    values = similarity.detach().cpu().double().numpy()
    labels = [np.arange(width)]
    for model in range(1, len(sizes)):
        rows, columns = linear_sum_assignment(values[:width, model * width : (model + 1) * width], maximize=True)
        labels.append(rows[np.argsort(columns)])
    return Match(torch.from_numpy(np.concatenate(labels)), sizes, width)


def average_match(sizes: Sequence[int]) -> Match:
    """Unit i of every model becomes merged unit i: plain weight averaging.

    >>> average_match([2, 2]).labels
    tensor([0, 1, 0, 1])
    """
    width = _equal(tuple(sizes), "average")
    return Match(torch.arange(width).repeat(len(sizes)), tuple(sizes), width)


def match_groups(
    similarities: Sequence[Tensor | None], models: int, groups: int, methods: Sequence[UnitMatch]
) -> list[Match]:
    """Match spaces whose units move in whole groups (grouped convolutions, GroupNorm), one order for all of them.

    Each model's groups are assigned one-to-one to the first model's by the best inner match of the units of a pair,
    summed over the spaces; then each space's method runs inside every group of groups.

    Args:
        similarities: one `(N * n_i, N * n_i)` matrix per space, `None` for a space with one unit per group that only
            follows the others.
        models: number of models N.
        groups: how many groups each space has.
        methods: for each space, the method for the units of one group.
    """
    orders = [np.arange(groups)]  # orders[k][g]: the group of model k that joins group g
    blocks = [None if s is None else _by_group(s, models, groups) for s in similarities]
    for model in range(1, models):
        scores = np.zeros((groups, groups))
        for block in blocks:
            if block is not None:
                scores += _group_scores(block, model)
        orders.append(linear_sum_assignment(scores, maximize=True)[1])
    return [
        _follow(orders) if block is None else _inside(block, orders, method)
        for block, method in zip(blocks, methods, strict=True)
    ]


def _group_scores(block: np.ndarray, model: int) -> np.ndarray:
    """Best summed similarity of the units of each group of the first model with each group of another."""
    groups = block.shape[1]
    scores = np.empty((groups, groups))
    for a in range(groups):
        for b in range(groups):
            pair = block[0, a, :, model, b]
            rows, columns = linear_sum_assignment(pair, maximize=True)
            scores[a, b] = pair[rows, columns].sum()
    return scores


def _follow(orders: list[np.ndarray]) -> Match:
    """The match of a space that has one unit per group."""
    labels = np.concatenate([np.argsort(order) for order in orders])
    return Match(torch.from_numpy(labels), (len(orders[0]),) * len(orders), len(orders[0]))


def _by_group(similarity: Tensor, models: int, groups: int) -> np.ndarray:
    """(N n, N n) -> (model, group, unit, model, group, unit)."""
    n = similarity.shape[0] // models
    shape = (models, groups, n // groups)
    return similarity.detach().cpu().double().numpy().reshape(*shape, *shape)


def _inside(block: np.ndarray, orders: list[np.ndarray], match: UnitMatch) -> Match:
    models, groups, units = block.shape[:3]
    labels = np.empty((models, groups, units), dtype=np.int64)
    width = units
    for group in range(groups):
        chosen = [int(order[group]) for order in orders]
        part = np.stack([[block[i, a, :, j, b] for j, b in enumerate(chosen)] for i, a in enumerate(chosen)])
        part = part.transpose(0, 2, 1, 3).reshape(models * units, models * units)
        inner = match(torch.from_numpy(np.ascontiguousarray(part)), [units] * models)
        width = inner.width
        for model, a in enumerate(chosen):
            labels[model, a] = group * width + inner.of(model).numpy()
    return Match(torch.from_numpy(labels.reshape(-1)), (groups * units,) * models, groups * width)


def _checked(similarity: Tensor, sizes: Sequence[int], keep: int | None) -> tuple[tuple[int, ...], int]:
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

"""Matching: a similarity of all models' units -> which merged unit each of them becomes. Tensors only.

A new method is one function `(similarity, sizes, ...) -> Match` and one line in `METHODS` (`methods.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hf_zipit.errors import OptionError

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

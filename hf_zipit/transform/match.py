"""A match: which merged unit each unit of each model becomes. Tensors only.

`matching/registry.py` has the methods that compute one from a similarity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_zipit.errors import OptionError

UnitMatch = Callable[[Tensor, Sequence[int]], "Match"]  # (similarity (n, n), sizes) -> match


@dataclass(frozen=True, eq=False)
class Match:
    """Which merged unit every unit of every model becomes.

    Attributes:
        labels: The merged unit of each unit, `(n,)`, in `0 .. width - 1`; all units of model 0 come first, then those
            of model 1, and so on. -1 is a dropped unit: no merged unit averages it, and nothing reads it.
        sizes: Number of units of each model; their sum is `n`.
        width: Number of merged units, `m`.
        score: Mean similarity of the units that were merged, as the method defines it.
        kept: Boolean, `(n,)`. If given, the refit target of a merged unit is the mean of its kept members only.

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
        """The number of units in each merged unit, `(m,)`."""
        return torch.bincount(self.labels[self.labels >= 0], minlength=self.width)

    @property
    def unmerge(self) -> Tensor:
        """The unmerge matrix `U`, `(n, m)`: one-hot rows; a row of zeros for a dropped unit."""
        return (self.labels[:, None] == torch.arange(self.width)).float()

    @property
    def merge(self) -> Tensor:
        """The merge matrix `M`, `(m, n)`: the mean over the members of each merged unit."""
        return (self.unmerge / self.counts.clamp(min=1)).T

    @property
    def aim(self) -> "Match":
        """The match that defines the refit targets: the kept units only."""
        if self.kept is None:
            return self
        return replace(self, labels=self.labels.masked_fill(~self.kept, -1), kept=None)

    def of(self, model: int) -> Tensor:
        """The labels of one model's units, `(sizes[model],)`."""
        return torch.split(self.labels, list(self.sizes))[model]

    def alone(self, model: int, units: Tensor | None = None) -> "Match":
        """The match of one model alone, or of some of its units, `(k,)`."""
        labels = self.of(model) if units is None else self.of(model)[units]
        return Match(labels, (len(labels),), self.width)

    def composition(self) -> dict[str, int]:
        """Counts of merged units by their members.

        Returns:
            `shared`: members from several models; `within`: several members, all from one model; `alone`: one member.
        """
        by_model = torch.split(self.labels, list(self.sizes))
        members = torch.stack([torch.bincount(x[x >= 0], minlength=self.width) for x in by_model])  # (models, m)
        shared = (members > 0).sum(0) > 1
        single = members.sum(0) == 1
        return {
            "shared": int(shared.sum()),
            "within": int((~shared & ~single).sum()),
            "alone": int((~shared & single).sum()),
        }


def check_sizes(similarity: Tensor, sizes: Sequence[int], keep: int | None) -> tuple[tuple[int, ...], int]:
    """Check the arguments of a matching method.

    Args:
        similarity: Similarity of all units, `(n, n)`.
        sizes: Number of units of each model; their sum must be `n`.
        keep: Number of merged units; by default the mean of the sizes, rounded.

    Returns:
        The sizes as a tuple of integers, and the number of merged units.

    Raises:
        OptionError: the similarity has another shape, or `keep` is out of range.
    """
    total = sum(sizes)
    sizes = tuple(int(size) for size in sizes)
    if similarity.shape != (total, total):
        raise OptionError(f"similarity has shape {tuple(similarity.shape)}, the sizes {list(sizes)} need {total} rows")
    keep = round(total / len(sizes)) if keep is None else keep
    if not 1 <= keep <= total:
        raise OptionError(f"keep is {keep}: give between 1 and {total} merged units")
    return sizes, keep


def check_match(found: Any, sizes: Sequence[int], keep: int | None = None, groups: int = 1) -> str:
    """What is wrong with what a matching function returned, as the end of a sentence; empty if nothing is.

    Args:
        found: What it returned.
        sizes: Number of units of each model.
        keep: Number of merged units that it was asked for; by default that of one model, if all have as many.
        groups: Number of groups of units that can only be moved whole.

    >>> check_match(Match(torch.tensor([0, 1, 1, 3]), (2, 2), 2), [2, 2])
    'a match with label 3, but its width is 2'
    """
    if not isinstance(found, Match):
        return f"{type(found).__name__}, not a Match"
    total = sum(sizes)
    if tuple(found.sizes) != tuple(sizes):
        return f"a match of {list(found.sizes)} units, but the models have {list(sizes)}"
    if found.labels.shape != (total,) or found.labels.dtype != torch.int64:
        return f"labels of shape {tuple(found.labels.shape)} and {found.labels.dtype}, not ({total},) and torch.int64"
    low, high = int(found.labels.min()), int(found.labels.max())
    if low < -1 or high >= found.width:
        return f"a match with label {low if low < -1 else high}, but its width is {found.width}"
    if not bool(found.counts.all()):
        return f"a match whose merged unit {int(found.counts.argmin())} has no members"
    wanted = keep or (sizes[0] if len(set(sizes)) == 1 else found.width)
    if found.width != wanted:
        return f"a match of width {found.width}, not {wanted}"
    return "" if _moves_whole(found, groups) else f"a match that divides some of {groups} groups of units"


def _moves_whole(match: Match, groups: int) -> bool:
    """Whether all units of a group become units of one merged group."""
    for model in range(len(match.sizes)):
        target, kept = _targets(match, groups, model)
        low, high = target.masked_fill(~kept, groups).amin(1), target.masked_fill(~kept, -1).amax(1)
        if bool((kept.any(1) & (low != high)).any()):
            return False
    return True


def group_order(match: Match, groups: int) -> list[list[int]]:
    """For each model the merged group of each of its groups, of a match that moves them whole; -1 if one is dropped.

    >>> group_order(Match(torch.tensor([2, 3, 0, 1]), (4,), 4), groups=2)
    [[1, 0]]
    """
    found = []
    for model in range(len(match.sizes)):
        target, kept = _targets(match, groups, model)
        found.append(target.masked_fill(~kept, -1).amax(1).tolist())
    return found


def _targets(match: Match, groups: int, model: int) -> tuple[Tensor, Tensor]:
    """The merged group of each unit of a model, and whether the unit is kept, `(groups, units)` each."""
    labels = match.of(model).view(groups, -1)
    return labels // (match.width // groups), labels >= 0

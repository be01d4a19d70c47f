"""Wider matches of methods that know one width only: what was merged worst is taken apart again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.transform.match import Match, UnitMatch


def widened(method: UnitMatch, keep: int) -> UnitMatch:
    """A method whose matches have `keep` merged units, by splitting off the units that fit worst."""
    return lambda similarity, sizes: split_match(method(similarity, sizes), similarity, keep)


def split_match(match: Match, similarity: Tensor, keep: int) -> Match:
    """Split units off their clusters, the least alike to the rest of their cluster first, until `keep` are left.

    This is a partial permutation (Nasery et al., 2025) where the match is one-to-one: the best pairs stay merged.

    Args:
        match: of any method; no unit may be dropped.
        similarity: `(n, n)`.
        keep: merged units, between the match's width and n.

    Raises:
        OptionError: fewer merged units than the match has.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> split_match(Match(torch.tensor([0, 1, 0, 1]), (2, 2), 2), s, 3).labels
    tensor([0, 1, 0, 2])
    """
    if keep < match.width:
        raise OptionError(
            f"{keep} merged units of {match.width}: only a method that merges within models gets narrower"
        )
    values, labels, width = similarity.detach().cpu().double(), match.labels.clone(), match.width
    while width < min(keep, len(labels)):
        together = labels[:, None] == labels
        together.fill_diagonal_(False)
        mates = together.sum(1)
        fit = (values * together).sum(1) / mates.clamp(min=1)
        fit[mates == 0] = torch.inf
        worst = fit == fit.min()
        labels[int(worst.nonzero()[-1])] = width  # of a pair the second unit, the first keeps its place
        width += 1
    return Match(labels, match.sizes, width, match.score)


def unit_count(size: int, groups: int, models: int, ratio: float) -> int:
    """The merged width of a space: `ratio` times its size, whole groups of equal size, at least one unit each."""
    units = size // groups
    return groups * min(max(1, round(ratio * units)), models * units)


def check_ratio(name: str, value: float, models: Sequence[object] | None = None) -> None:
    """Refuse a ratio that is not positive, or above the number of models."""
    if value <= 0 or (models is not None and value > len(models)):
        limit = "positive" if models is None else f"above 0 and at most {len(models)}, the number of models"
        raise OptionError(f"{name} is {value:g}: it must be {limit}")

"""Wider merges: splitting the worst-matched units off again, and the widths that a ratio gives."""

import torch
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.transform.match import Match, UnitMatch


def widened(method: UnitMatch, keep: int) -> UnitMatch:
    """A version of `method` with `keep` merged units: the worst-matched units are split off (see `split_match`)."""
    return lambda similarity, sizes: split_match(method(similarity, sizes), similarity, keep)


def split_match(match: Match, similarity: Tensor, keep: int) -> Match:
    """Split units off their clusters, the least similar to the rest of their cluster first, until `keep` clusters.

    For a one-to-one match this is a partial permutation (Nasery et al., 2025): the best pairs stay merged. Takes
    O(n^2) time for each split, and O(n^2) memory.

    Args:
        match: A match of n units, none of them dropped.
        similarity: `(n, n)`.
        keep: Merged units, at least the width of the match; n at most.

    Returns:
        A match of width `min(keep, n)`.

    Raises:
        OptionError: `keep` is below the width of the match.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> split_match(Match(torch.tensor([0, 1, 0, 1]), (2, 2), 2), s, 3).labels
    tensor([0, 1, 0, 2])
    """
    if keep < match.width:
        raise OptionError(
            f"keep is {keep}, below the {match.width} units of the match: only methods that merge within models, such "
            "as zip and select, go below the width of one model"
        )
    values = similarity.detach().cpu().double()
    labels = match.labels.clone()
    width = match.width
    while width < min(keep, len(labels)):
        together = labels[:, None] == labels
        together.fill_diagonal_(False)
        mates = together.sum(1)
        fit = (values * together).sum(1) / mates.clamp(min=1)
        fit[mates == 0] = torch.inf
        worst = fit == fit.min()
        labels[int(worst.nonzero()[-1])] = width  # the later unit of a pair leaves, the earlier keeps its label
        width += 1
    return Match(labels, match.sizes, width, match.score)


def unit_count(size: int, groups: int, models: int, ratio: float) -> int:
    """Merged width of a space: `ratio` times its size, rounded to whole groups of equal size.

    Args:
        size: Units of one model in the space.
        groups: Groups of the space; each keeps at least one unit.
        models: Number of models N; the result is at most N times `size`.
        ratio: Merged units for each unit of one model.

    >>> unit_count(16, 4, 2, 1.3)
    20
    """
    units = size // groups
    return groups * min(max(1, round(ratio * units)), models * units)

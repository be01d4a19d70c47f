"""Unit selection: keep the units that predict best what the next layers read, and merge the others into them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.matching.quality import agreement
from hf_zipit.matching.subset import best_subset
from hf_zipit.transform.match import Match, check_sizes


def select_match(
    similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None, readers: Tensor | None = None
) -> Match:
    """Keep the units that predict all others best, and merge every other unit into the kept unit most similar to it.

    The units are kept by greedy column subset selection (see `subset.best_subset`). The merge averages each cluster
    like a zip. A unit with no positive similarity to any kept unit, such as a dead one, is dropped: in a mean it would
    only weaken the others. A refit targets the kept units alone, not means of dissimilar units, and compensates for
    the rest.

    Args:
        similarity: Correlation, `(n, n)`, units of model 0 first.
        sizes: Units of each model, `sum(sizes) == n`.
        keep: Merged units; the mean of `sizes` by default.
        readers: `(r, n)`: what the next layers read of an error of the units (see `weights.readers`). By default every
            unit is read by itself, and all count the same.

    Returns:
        A match of width `keep`, with `kept` set. Merged units are in the order of the kept units.

    Raises:
        OptionError: `keep` is out of range, or the similarity has another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> match = select_match(s, [2, 2])
    >>> match.labels, match.kept
    (tensor([0, 1, 0, 1]), tensor([ True,  True, False, False]))
    """
    sizes, keep = check_sizes(similarity, sizes, keep)
    chosen = best_subset(similarity, keep, readers).flip(0)  # of equally similar ones, the last is the nearest
    rank = chosen.argsort().argsort()  # merged units are in the order of the kept ones
    nearest = similarity[:, chosen].max(1)
    labels = torch.where(nearest.values > 0, rank[nearest.indices], -1)
    labels[chosen] = rank
    kept = torch.zeros(len(similarity), dtype=torch.bool)
    kept[chosen.cpu()] = True
    match = Match(labels.cpu(), sizes, keep, kept=kept)
    return replace(match, score=agreement(similarity, match))

"""k-means clustering of the units of all models."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.matching.average import common_width
from hf_zipit.matching.quality import agreement
from hf_zipit.matching.zip import zip_match
from hf_zipit.transform.match import Match, check_sizes

MAX_STEPS = 100


def kmeans_match(similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None) -> Match:
    """Cluster the units of all models by k-means (ZipIt!, appendix; of one model, Wang et al., 2025).

    Runs Lloyd's algorithm on the standardised activations, of which the similarity holds the inner products. The
    squared distance of unit i to the mean of a cluster is `s_ii - 2 mean_j s_ij + mean_jk s_jk` over its members j, k.
    The initial clusters are those of `zip_match` with `alpha=1, beta=1`. An empty cluster takes the unit that is
    farthest from the mean of its own. The result is deterministic and independent of the order of the models. Takes
    O(n^2) time per step, at most 100 steps, and O(n^2) memory.

    Args:
        similarity: Correlation of the units, `(n, n)`, units of model 0 first.
        sizes: Units of each model, `sum(sizes) == n`.
        keep: Clusters. Default: the units of one model; all must then have equally many.

    Returns:
        A match of width `keep`, clusters ordered by their first unit.

    Raises:
        OptionError: The models have different widths and `keep` is not given, `keep` is out of range, or the similarity
            has another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> kmeans_match(s, [2, 2]).labels
    tensor([0, 1, 0, 1])
    """
    sizes, width = check_sizes(similarity, sizes, common_width(sizes, "kmeans") if keep is None else keep)
    values = similarity.detach().cpu().double()
    units = torch.arange(len(values))
    labels = zip_match(values, sizes, alpha=1, beta=1, keep=width).labels
    for _ in range(MAX_STEPS):
        distance = _distances(values, labels, width)  # (n, m)
        own = distance[units, labels]
        nearest, closest = distance.min(1)
        moved = torch.where(nearest < own - 1e-9, closest, labels)
        counts = torch.bincount(moved, minlength=width)
        for empty in (counts == 0).nonzero().flatten():
            unit = int(torch.where(counts[moved] > 1, distance[units, moved], -torch.inf).argmax())
            counts[moved[unit]] -= 1
            counts[empty] += 1
            moved[unit] = empty
        if torch.equal(moved, labels):
            break
        labels = moved
    match = Match(_numbered(labels), sizes, width)
    return replace(match, score=agreement(values, match))


def _distances(values: Tensor, labels: Tensor, width: int) -> Tensor:
    """Squared distance of every unit to the mean of every cluster, `(n, m)`."""
    counts = torch.bincount(labels, minlength=width)
    means = values.new_zeros(width, len(values)).index_add_(0, labels, values) / counts[:, None]  # (m, n)
    inner = values.new_zeros(width).index_add_(0, labels, means[labels, torch.arange(len(values))]) / counts
    return values.diagonal()[:, None] - 2 * means.T + inner


def _numbered(labels: Tensor) -> Tensor:
    """The labels renumbered, clusters in the order of their first unit."""
    first = torch.full((int(labels.max()) + 1,), len(labels))
    first.scatter_reduce_(0, labels, torch.arange(len(labels)), "amin")
    return first.argsort().argsort()[labels]

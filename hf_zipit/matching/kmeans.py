"""k-means over the units of all models."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.matching.quality import agreement
from hf_zipit.matching.zip import zip_match
from hf_zipit.transform.match import Match, average_match

STEPS = 100


def kmeans_match(similarity: Tensor, sizes: Sequence[int]) -> Match:
    """k-means with one cluster per unit of a model (ZipIt!, appendix), across and within the models.

    Lloyd's steps on the standardised activations, whose inner products are the similarity: the squared distance of
    unit i to the mean of a cluster is `s_ii - 2 mean_j s_ij + mean_jk s_jk` over its members. The first clusters are
    those that the zip finds without penalty and budget; one that loses all units takes the unit that is farthest from
    its own mean. Deterministic, and independent of the models' order.

    Raises:
        OptionError: models of different widths.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> kmeans_match(s, [2, 2]).labels
    tensor([0, 1, 0, 1])
    """
    sizes = tuple(sizes)
    width = average_match(sizes).width
    values = similarity.detach().cpu().double()
    units, labels = torch.arange(len(values)), zip_match(values, sizes, alpha=1, beta=1).labels
    for _ in range(STEPS):
        distance = _distances(values, labels, width)  # (n, m)
        own = distance[units, labels]
        near, closest = distance.min(1)
        moved = torch.where(near < own - 1e-9, closest, labels)
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
    """Squared distance of every unit to every cluster's mean, `(n, m)`."""
    counts = torch.bincount(labels, minlength=width)
    means = values.new_zeros(width, len(values)).index_add_(0, labels, values) / counts[:, None]  # (m, n)
    inner = values.new_zeros(width).index_add_(0, labels, means[labels, torch.arange(len(values))]) / counts
    return values.diagonal()[:, None] - 2 * means.T + inner


def _numbered(labels: Tensor) -> Tensor:
    """Clusters in the order of their first unit."""
    first = torch.full((int(labels.max()) + 1,), len(labels))
    first.scatter_reduce_(0, labels, torch.arange(len(labels)), "amin")
    return first.argsort().argsort()[labels]

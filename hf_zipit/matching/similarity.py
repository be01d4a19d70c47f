"""Similarity of units from activation statistics.

A new similarity is one function from moments to an `(n, n)` tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.statistics.moments import Moments, ReferenceMoments

TIE_WEIGHT = 1e-3  # weight of the fingerprints against the correlation: just enough to break ties
FAINT = 1e-20  # the mean variance of a model's units, if they are all constant


def correlation(moments: Moments, fingerprint_similarity: Tensor | None = None) -> Tensor:
    """Pearson correlation of every pair of units (ZipIt!, section 4.1).

    A dead unit, whose variance is only rounding error, has similarity 0 with every other. With fingerprints, equal
    correlations are told apart. Two dead units then have a similarity between 0.5 and 1, since merging them costs
    nothing on this data.

    Args:
        moments: Mean and covariance of the n units.
        fingerprint_similarity: Similarity of the units' weights, `(n, n)` in (0, 1].

    Returns:
        `(n, n)` in [-1, 1], float32.

    >>> from hf_zipit.statistics.moments import Moments
    >>> moments = Moments.empty(2)
    >>> moments.update(torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]]))
    >>> round(correlation(moments)[0, 1].item(), 6)
    -1.0
    """
    variance = moments.variance
    alive = variance > 1e-12 * moments.mean.square()
    values = moments.scaled(torch.where(alive, variance, 1).rsqrt() * alive)
    if fingerprint_similarity is None:
        return values
    weights = fingerprint_similarity.to(values)
    values.lerp_(weights, TIE_WEIGHT)
    dead = ~alive
    if dead.any():
        values[dead] = values[:, dead] = 0
        values[dead[:, None] & dead] = ((1 + weights) / 2)[dead[:, None] & dead]
    return values


def tied_covariance(moments: Moments, fingerprint_similarity: Tensor, sizes: Sequence[int]) -> Tensor:
    """Covariance of every pair of units, with a little that tells units apart that the activations do not.

    Units that are constant have no covariance with any other. With the similarity of their weights, times a small share
    of the mean variance, constant units of several models belong together if their weights are alike.

    Args:
        moments: Mean and covariance of the n units.
        fingerprint_similarity: Similarity of the units' weights, `(n, n)` in (0, 1].
        sizes: Number of units of each model.

    Returns:
        `(n, n)`, float64.
    """
    covariance = moments.covariance.double()
    means = [part.mean().clamp(min=FAINT) for part in torch.split(covariance.diagonal(), list(sizes))]
    scale = torch.cat([mean.sqrt().expand(size) for mean, size in zip(means, sizes, strict=True)])
    return covariance + TIE_WEIGHT * scale[:, None] * fingerprint_similarity.to(covariance) * scale


def reference_correlation(moments: ReferenceMoments) -> Tensor:
    """The correlation of the authors' code, with a floor of 1e-7 on the product of two deviations.

    Args:
        moments: Mean and covariance of the n units, as that code computes them.

    Returns:
        `(n, n)`.
    """
    covariance = moments.covariance
    deviation = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviation, deviation).clamp(min=1e-7)

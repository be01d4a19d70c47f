"""Similarity of units from statistics. Tensors only.

A new similarity is one function `(moments) -> (n, n)` tensor.
"""

import torch
from torch import Tensor

from hf_zipit.moments import AnyMoments


def correlation(moments: AnyMoments) -> Tensor:
    """Pearson correlation of every pair of units (ZipIt!, section 4.1), `(n, n)` in [-1, 1].

    A dead unit, whose variance is nothing but rounding, has similarity 0 with every other.

    >>> from hf_zipit.moments import Moments
    >>> moments = Moments.empty(2)
    >>> moments.update(torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]]))
    >>> correlation(moments)[0, 1].item()
    -1.0
    """
    covariance = moments.covariance
    variance = covariance.diagonal()
    alive = variance > 1e-12 * moments.mean.square()
    scale = torch.where(alive, variance, 1).rsqrt() * alive
    return (covariance * scale * scale[:, None]).clamp_(-1, 1)


def reference_correlation(moments: AnyMoments) -> Tensor:
    """The correlation of the authors' code: float32, with a floor of 1e-7 on the product of deviations."""
    covariance = moments.covariance
    deviation = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviation, deviation).clamp(min=1e-7)

"""Similarity of units from statistics. Tensors only.

A new similarity is one function `(moments) -> (n, n)` tensor.
"""

import torch
from torch import Tensor

from hf_zipit.statistics.moments import AnyMoments

TIE = 1e-3  # how far the likeness of weights may move a correlation: enough to decide between equals


def correlation(moments: AnyMoments, likeness: Tensor | None = None) -> Tensor:
    """Pearson correlation of every pair of units (ZipIt!, section 4.1), `(n, n)` in [-1, 1].

    A dead unit, whose variance is nothing but rounding, has similarity 0 with every other. With `likeness`, a matrix
    of how alike the units' weights are in (0, 1], equal correlations are told apart, and two dead units, which can be
    merged without any loss on this data, have similarity between 0.5 and 1.

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
    values = (covariance * scale * scale[:, None]).clamp_(-1, 1)
    if likeness is None:
        return values
    dead = ~alive
    values = torch.lerp(values, likeness.to(values), TIE).masked_fill_(dead[:, None] ^ dead, 0)
    return torch.where(dead[:, None] & dead, (1 + likeness.to(values)) / 2, values)


def reference_correlation(moments: AnyMoments, likeness: Tensor | None = None) -> Tensor:
    """The correlation of the authors' code: float32, with a floor of 1e-7 on the product of deviations.

    `likeness` is not used: there is nothing of the kind in that code.
    """
    covariance = moments.covariance
    deviation = covariance.diagonal().sqrt()
    return covariance / torch.outer(deviation, deviation).clamp(min=1e-7)

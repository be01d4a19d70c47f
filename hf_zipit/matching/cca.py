"""CCA-Merge: linear maps between the units of models, from canonical correlation analysis."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.average import common_width
from hf_zipit.transform.dense import DenseMatch

RIDGE = 0.1  # what is added to every variance, as a share of the mean variance of the model's units


def cca_match(covariance: Tensor, sizes: Sequence[int], *, ridge: float = RIDGE) -> DenseMatch:
    """Map the units of every model linearly to those of the first, along the canonical directions of both.

    Both models' units are whitened. The rotation between them that correlates them most is the polar factor of their
    cross-covariance, and the result is coloured as the first model's units. With `S` the covariances plus the ridge and
    `L Σ R^T` the singular value decomposition of `S_11^-1/2 S_1k S_kk^-1/2`, the map is
    `T_k = S_11^1/2 L R^T S_kk^-1/2`. Merged are the units of the first model and the mapped ones of the others, with
    equal shares: `M = [I, T_2, ...] / N` and `U = [I; T_2^-1; ...]`.

    Every model is mapped to the first, so the result depends on which one that is. Takes O(n^3) time for each model.

    Source: Horoi et al. (2024), CCA-Merge, section 3.

    Args:
        covariance: Covariance of the units of all models, `(n, n)`, units of model 0 first.
        sizes: Units of each model, all equal; `sum(sizes) == n`.
        ridge: What is added to every variance, as a share of the mean variance of the model's units.

    Returns:
        A dense match as wide as one model. `score` is the mean canonical correlation of all models to the first.

    Raises:
        OptionError: The models have different widths, or the covariance has another shape.

    >>> x = torch.randn(99, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 2]], dtype=torch.float64)
    >>> match = cca_match(torch.cov(torch.cat([x, x @ turn], 1).T), [3, 3], ridge=1e-9)
    >>> bool(torch.allclose(match.unmerge_of(1).T, turn, atol=1e-6))
    True
    """
    width = common_width(sizes, "cca")
    if covariance.shape != (sum(sizes), sum(sizes)):
        raise OptionError(f"covariance has shape {tuple(covariance.shape)}, the sizes {list(sizes)} need {sum(sizes)}")
    values = covariance.double()
    eye = torch.eye(width, dtype=values.dtype, device=values.device)
    spans = [slice(k * width, (k + 1) * width) for k in range(len(sizes))]
    roots = [_roots(values[span, span], ridge) for span in spans]
    color, white = roots[0]
    maps, backs = [eye], [eye]
    scores = []
    for span, (color_k, white_k) in zip(spans[1:], roots[1:], strict=True):
        left, correlations, right = torch.linalg.svd(white @ values[spans[0], span] @ white_k)
        rotation = left @ right
        maps.append(color @ rotation @ white_k)
        backs.append(color_k @ rotation.T @ white)
        scores.append(float(correlations.mean()))
    merge, unmerge = torch.cat(maps, 1) / len(maps), torch.cat(backs)
    spread = torch.eye(width, len(values))  # the mapped units vary as those of the first model do
    score = sum(scores) / len(scores) if scores else 1.0
    return DenseMatch(merge.cpu(), unmerge.cpu(), spread.double(), tuple(sizes), score)


def _roots(covariance: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The square root of a covariance with a ridge, and the inverse of the root."""
    mean = covariance.diagonal().mean().clamp(min=torch.finfo(covariance.dtype).tiny)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    floor = max(ridge, torch.finfo(covariance.dtype).eps) * mean
    root = (eigenvalues.clamp(min=0) + floor).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T

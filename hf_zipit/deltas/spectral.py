"""Rules that treat each difference as a matrix `(outputs, inputs)`: TSV-M, Iso-C, Iso-CTS and WUDI.

Kernels of convolutions are flattened to `(outputs, inputs * height * width)`. Tensors with fewer than two axes longer
than one, such as biases and norms, are averaged, as in the authors' code. Directions that a difference does not have,
as most of an adapter of low rank, are left out: their singular vectors are noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_zipit.deltas.rules import Deltas

COMMON = 0.8  # share of Iso-CTS' directions that all tasks have in common, as in the paper
NOISE = 1e-5  # singular values below this share of the largest are rounding errors of weights in float32
RIDGE = 0.01  # of WUDI, relative to the largest eigenvalue


def tsv(deltas: Deltas) -> dict[str, Tensor]:
    """Merge the leading singular vectors of all models, made orthogonal to each other (TSV-M, Gargiulo et al., 2025).

    Each of N models keeps the first 1/N of its singular triplets. The stacked singular vectors are replaced by the
    nearest orthonormal ones.

    Args:
        deltas: one mapping per model.

    >>> delta = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}
    >>> torch.allclose(tsv([delta])["w"], delta["w"])
    True
    """
    return _by_matrix(deltas, _tsv)


def iso_c(deltas: Deltas) -> dict[str, Tensor]:
    """The sum of the differences with all of its singular values set to their mean (Iso-C, Marczak et al., 2025).

    Args:
        deltas: one mapping per model.

    >>> torch.linalg.svdvals(iso_c([{"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}])["w"])
    tensor([1.5000, 1.5000])
    """
    return _by_matrix(deltas, _iso_c)


def iso_cts(deltas: Deltas) -> dict[str, Tensor]:
    """As Iso-C, with directions of each task in place of the last common ones (Iso-CTS, Marczak et al., 2025).

    The first 80 % of the directions are those of the sum. The rest are divided among the tasks: each gives the leading
    directions of what the common ones leave of its difference.

    Args:
        deltas: one mapping per model.

    >>> iso_cts([{"w": torch.eye(2)}, {"w": torch.eye(2)}])["w"].shape
    torch.Size([2, 2])
    """
    return _by_matrix(deltas, _iso_cts)


def wudi(deltas: Deltas) -> dict[str, Tensor]:
    """Least interference between tasks, in closed form (WUDI, Cheng et al., 2025).

    `D = [sum_t D_t D_t' D_t / |D_t|^2] [sum_t D_t' D_t / |D_t|^2]^-1`: a regression of the differences in which
    `D_t' D_t` stands for the unknown second moment of the inputs. A ridge keeps the weights small: layers with more
    inputs than outputs could otherwise fit all tasks exactly, with weights that are far too large.

    Args:
        deltas: one mapping per model.

    >>> delta = {"w": torch.tensor([[2.0, 0.0], [0.0, 1.0]])}
    >>> wudi([delta, delta])["w"]
    tensor([[1.9802, 0.0000],
            [0.0000, 0.9615]])
    """
    return _by_matrix(deltas, _wudi)


def _by_matrix(deltas: Deltas, rule: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply a rule `(N, outputs, inputs) -> (outputs, inputs)` to matrices, and average the rest."""
    out = {}
    for name, first in deltas[0].items():
        stacked = torch.stack([delta[name] for delta in deltas])
        matrices = stacked.double().reshape(len(deltas), len(first) if first.ndim else 1, -1)
        plain = min(matrices.shape[1:]) < 2 or not bool(matrices.any())
        out[name] = stacked.mean(0) if plain else rule(matrices).reshape(first.shape).to(first.dtype)
    return out


def _tsv(matrices: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    most = max(1, values.shape[1] // len(matrices))
    kept = [min(most, _rank(mine)) for mine in values]
    u = torch.cat([mine[:, :count] for mine, count in zip(left, kept, strict=True)], 1)
    v = torch.cat([mine[:count] for mine, count in zip(right, kept, strict=True)], 0)
    s = torch.cat([mine[:count] for mine, count in zip(values, kept, strict=True)])
    merged: Tensor = (_orthonormal(u) * s) @ _orthonormal(v)
    return merged


def _iso_c(matrices: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrices.sum(0), full_matrices=False)
    rank = _rank(values)
    merged: Tensor = values[:rank].mean() * left[:, :rank] @ right[:rank]
    return merged


def _iso_cts(matrices: Tensor) -> Tensor:
    left, values, right = torch.linalg.svd(matrices.sum(0), full_matrices=False)
    largest, rank = values[0], _rank(values)
    most = round((1 - COMMON) * rank) // len(matrices)
    common = rank - most * len(matrices)
    left, values, right = left[:, :common], values[:common], right[:common]
    own = torch.linalg.svd(matrices - left @ (left.T @ matrices), full_matrices=False)
    kept = [min(most, int((mine > NOISE * largest).sum())) for mine in own[1]]
    u = torch.cat([left, *(mine[:, :count] for mine, count in zip(own[0], kept, strict=True))], 1)
    v = torch.cat([right, *(mine[:count] for mine, count in zip(own[2], kept, strict=True))], 0)
    mean = torch.cat([values, *(mine[:count] for mine, count in zip(own[1], kept, strict=True))]).mean()
    return mean * _orthonormal(u) @ _orthonormal(v)


def _wudi(matrices: Tensor) -> Tensor:
    norms = matrices.square().sum((1, 2)).clamp(min=torch.finfo(matrices.dtype).tiny)
    inputs = matrices.transpose(1, 2) @ matrices / norms[:, None, None]  # (N, inputs, inputs)
    values, vectors = torch.linalg.eigh(inputs.sum(0))
    inverse = (vectors / (values.clamp(min=0) + RIDGE * values[-1])) @ vectors.T
    merged: Tensor = (matrices @ inputs).sum(0) @ inverse
    return merged


def _rank(values: Tensor) -> int:
    """The number of singular values, from the largest down, that are more than rounding errors."""
    return int((values > NOISE * values[0]).sum())


def _orthonormal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns, or rows if it is wide: its polar factor."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = left @ right
    return factor

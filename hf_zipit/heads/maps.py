"""The maps of attention heads to fewer units, in closed form. Source: our own; see `docs/heads.md` for the derivation.

All arithmetic is float64. Functions take second moments, not samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 1e-9  # eigenvalues below this share of the largest count as this share
ZERO = 1e-30  # a moment below this is that of units that never change
RIDGE = 1e-3  # of the fit of all heads' outputs, as a multiple of the mean second moment
SWEEPS = 6  # rounds over the heads


def power(moment: Tensor, exponent: float) -> Tensor:
    """A power of symmetric positive semi-definite matrices, `(..., n, n)`; tiny eigenvalues are raised, 0 stays 0.

    >>> power(torch.tensor([[4.0]], dtype=torch.float64), 0.5)
    tensor([[2.]], dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(moment)
    largest = values[..., -1:]
    values = torch.where(largest > ZERO, torch.maximum(values, FLOOR * largest).clamp(min=ZERO) ** exponent, 0)
    out: Tensor = (vectors * values[..., None, :]) @ vectors.mT
    return out


def logit_spectrum(queries: Tensor, keys: Tensor) -> Tensor:
    """The singular values of `Sq^(1/2) Sk^(1/2)` for each head, largest first, `(..., u)`.

    The share of their squares beyond the r-th is the share of the variance of the logits that r units cannot give. So
    this says whether all heads of several models fit into one.

    Args:
        queries: second moments of the queries, `(..., u, u)`.
        keys: those of the keys, centred over the tokens of each image, `(..., u, u)`.
    """
    spectrum: Tensor = torch.linalg.svdvals(power(queries, 0.5) @ power(keys, 0.5))
    return spectrum


def logit_maps(queries: Tensor, keys: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The maps `A, B` of queries and keys to r units that keep the logits best: `(A q)' (B k)` stands in for `q' k`.

    Where queries and keys are independent this is the best approximation of rank r of the logits, up to what is common
    to a row of them, which softmax ignores. With `U S V' = Sq^(1/2) Sk^(1/2)`, `A = S_r^(1/2) U_r' Sq^(-1/2)` and
    `B = S_r^(1/2) V_r' Sk^(-1/2)`.

    Args:
        queries: second moments of the queries, `(..., u, u)`.
        keys: those of the keys, centred over the tokens of each image, `(..., u, u)`.
        units: r.

    Returns:
        Two maps, `(..., r, u)` each.
    """
    left, values, right = torch.linalg.svd(power(queries, 0.5) @ power(keys, 0.5))
    root = values[..., :units, None].sqrt()
    a = root * left[..., :units].mT @ power(queries, -0.5)
    b = root * right[..., :units, :] @ power(keys, -0.5)
    signs = _signs(a)
    return a * signs, b * signs


def value_maps(moment: Tensor, written: Sequence[Tensor], units: int) -> Tensor:
    """The maps of the values of all heads to r units, `(n, r, u)`, with rows of norm one.

    The heads' outputs `o_h` together write `sum_h W_h o_h`. Sought are maps of rank r such that the sum changes least:
    first a ridge for all heads together, then rounds over the heads, each a reduced-rank regression on what the others
    leave. A head whose output another one has as well can leave half of its work to that one.

    Args:
        moment: centred second moment of the outputs of all heads side by side, `(n * u, n * u)` for n heads.
        written: for each head, how it writes, `(u, d)`: its rows of the transposed output projection.
        units: r.
    """
    heads, size = len(written), len(written[0])
    cross = moment @ torch.cat(list(written)).double()  # of outputs and what they write
    gram = moment + RIDGE * moment.diagonal().mean().clamp(min=1e-30) * torch.eye(len(moment)).to(moment)
    blocks = torch.stack([gram[s, s] for s in _slices(heads, size)])
    roots, inverse = power(blocks, 0.5), power(blocks, -0.5)
    fitted = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
    maps = moment.new_empty(heads, size, units)
    for sweep in range(SWEEPS + 1):
        for h, mine in enumerate(_slices(heads, size)):
            wanted = fitted[mine]
            if sweep:
                rest = cross[mine] - gram[mine] @ fitted + gram[mine, mine] @ fitted[mine]
                wanted = torch.linalg.solve(gram[mine, mine], rest)
            left, values, right = torch.linalg.svd(roots[h] @ wanted, full_matrices=False)
            maps[h] = inverse[h] @ (left[:, :units] * values[:units])
            fitted[mine] = maps[h] @ right[:units]
    maps /= maps.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return _signs(maps.mT) * maps.mT


def best_reader(moment: Tensor, written: Sequence[Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares reader of the mapped outputs of all heads.

    Args:
        moment: centred second moment of the outputs of all heads side by side, `(n * u, n * u)`.
        written: for each head, how it writes, `(u, d)`.
        maps: of every head, `(n, r, u)`.

    Returns:
        What it writes for each new unit, and the covariance of new units and what the heads write, `(n, r, d)` each.
    """
    together = torch.block_diag(*maps.mT.to(moment))  # type: ignore[no-untyped-call]  # (n * u, n * r)
    cross = together.T @ (moment @ torch.cat(list(written)).to(moment))
    left = together.T @ moment @ together
    left += FLOOR * left.diagonal().mean().clamp(min=1e-30) * torch.eye(len(left)).to(left)
    shape = (*maps.shape[:2], -1)
    return torch.linalg.solve(left, cross).reshape(shape), cross.reshape(shape)


def value_reads(moment: Tensor, written: Sequence[Tensor], maps: Tensor) -> Tensor:
    """How the output projection of each head reads its new units, `(n, u, r)`: the best reader, as far as it can.

    Arguments are those of `best_reader`.
    """
    back, _ = best_reader(moment, written, maps)
    reads: Tensor = torch.linalg.pinv(torch.stack(list(written)).to(moment).mT) @ back.mT
    return reads


def random_maps(heads: int, size: int, units: int, seed: int) -> Tensor:
    """Random orthonormal maps of heads, `(n, r, u)`: the control for all others.

    Args:
        heads: n.
        size: u.
        units: r.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(heads, size, size, dtype=torch.float64, generator=generator)
    maps: Tensor = torch.linalg.qr(square)[0][:, :units]
    return maps


def _signs(maps: Tensor) -> Tensor:
    """Signs that make the largest entry of every row positive, `(..., r, 1)`: a decomposition leaves them open."""
    largest = maps.abs().argmax(-1, keepdim=True)
    return torch.where(maps.gather(-1, largest) < 0, -1.0, 1.0).to(maps)


def _slices(heads: int, size: int) -> list[slice]:
    return [slice(h * size, (h + 1) * size) for h in range(heads)]

"""Greedy column subset selection (Farahat et al., 2011), many columns at a time."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg.blas import dger
from torch import Tensor

JITTER = 1e-6  # added to the variance of every unit, which is 1
MIN_VARIANCE = 1e-5  # with less unexplained variance than this, a unit counts as predicted by the kept ones
UNREAD = 1e-6  # weight of the variance of a unit that nothing reads, relative to the mean of what is read
CANDIDATES = 256  # units among which a block is chosen
PATIENCE = 0.9  # a block ends when its best candidate scores less than this share of the best unit outside
DOUBLE = 2048  # up to so many units everything is computed in float64, beyond it in float32
ROWS = 1536  # with more readers than this, random combinations of them stand for all


def best_subset(correlation: Tensor, keep: int, readers: Tensor | None = None) -> Tensor:
    """The units that explain most of all units, as the next layers read them, in the order of choice.

    Repeatedly keeps the unit that explains most of what the units kept so far leave unexplained. Once they explain all
    others, the unit least similar to any of them is next, so that duplicates are kept last.

    Let `R` be the residual of the correlation, after the kept units have explained their part. Keeping unit j then
    explains `|y_j|^2 / r_jj`, where `Y = readers R`. `R` is never formed: its columns are those of `correlation` minus
    a factor of the explained part. Units are chosen in blocks. Inside a block the scores of some candidates are exact;
    those of all others, which seldom grow, are from its beginning. With at most `CANDIDATES` units, every choice is
    exact. Takes O(n^2) time for a block and `rows(readers) * n` for a unit, and O(n^2) memory.

    Args:
        correlation: `(n, n)`.
        keep: How many units to keep.
        readers: `(r, n)`: what the next layers read of an error of the units; identity by default.

    Returns:
        Their numbers, `(keep,)`.

    >>> best_subset(torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]), 2)
    tensor([0, 2])
    """
    search = _Search(correlation, keep, readers)
    while len(search.order) < keep and search.advance():
        pass
    return torch.tensor(_spread(correlation, search.order, keep), device=correlation.device)


class _Search:
    """A selection under way.

    Attributes:
        order: The units kept so far.
        values: The correlation, `(n, n)`.
        factor: `factor^T factor` is the part of the correlation that the kept units explain, `(keep, n)`.
        residual: Unexplained variance of every unit, `(n,)`, in float64.
        read: What the readers see of the residual of every unit, `(n, r)`.
        unread: The weight of a unit that nothing reads.
    """

    def __init__(self, correlation: Tensor, keep: int, readers: Tensor | None) -> None:
        count = len(correlation)
        dtype = torch.float64 if count <= DOUBLE else torch.float32
        self.order: list[int] = []
        self.keep = keep
        self.values = correlation.to(dtype, copy=True)
        self.values.diagonal().add_(JITTER)
        self.factor = self.values.new_empty(keep, count)
        self.residual = self.values.diagonal().double()
        root = None if readers is None else readers.to(self.values)
        rows = count if root is None else len(root)
        if rows > ROWS:
            generator = torch.Generator().manual_seed(0)
            mixed = (torch.randn(ROWS, rows, generator=generator) / ROWS**0.5).to(self.values)
            root = mixed if root is None else mixed @ root
        self.read = self.values.clone() if root is None else self.values @ root.T
        self.unread = 0.0 if root is None else UNREAD * float(root.square().sum(0).mean())

    def advance(self) -> bool:
        """Keep a block of units. False if those kept explain all others."""
        score = self._scores()
        alive = int((score > -torch.inf).sum())
        if not alive:
            return False
        best = score.topk(min(CANDIDATES + 1, alive))
        candidates = best.indices[:CANDIDATES]
        rival = PATIENCE * float(best.values[-1]) if alive > CANDIDATES else -np.inf
        explained = self.factor[: len(self.order), candidates]
        between = self.values[candidates][:, candidates] - explained.T @ explained
        between.diagonal().copy_(self.residual[candidates])
        read = self.read[candidates]
        picked, triangle = _choose(
            _array(between), _array(read @ read.T), self.keep - len(self.order), rival, self.unread
        )
        self._keep(candidates[torch.from_numpy(picked).to(candidates)], triangle)
        return True

    def _scores(self) -> Tensor:
        """How much each unit would explain, `(n,)`; minus infinity if it is kept, or explained already."""
        score: Tensor = torch.linalg.vector_norm(self.read, dim=1).double().square() / self.residual
        score += self.unread * self.residual
        score[self.residual <= MIN_VARIANCE] = -torch.inf
        score[self.order] = -torch.inf
        return score

    def _keep(self, units: Tensor, triangle: NDArray[np.float64]) -> None:
        """Keep units, whose residual correlation is `triangle triangle^T`."""
        start, end = len(self.order), len(self.order) + len(units)
        lower = torch.from_numpy(triangle).to(self.values)
        columns = self.values[units] - self.factor[:start, units].T @ self.factor[:start]
        columns = torch.linalg.solve_triangular(lower, columns, upper=False)  # (b, n)
        read = torch.linalg.solve_triangular(lower, self.read[units], upper=False)  # (b, r)
        self.factor[start:end] = columns
        self.read.addmm_(columns.T, read, alpha=-1)
        self.residual -= columns.double().square().sum(0)
        self.order += units.tolist()


def _choose(
    between: NDArray[np.float64], gain: NDArray[np.float64], most: int, rival: float, unread: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Choose among candidates, one at a time, until none scores as much as a rival outside.

    Args:
        between: The residual correlation of the candidates, `(k, k)`; overwritten.
        gain: Inner products of what is read of them, `(k, k)`; overwritten.
        most: Candidates to choose at most.
        rival: The score below which no further candidate is chosen; the first is chosen in any case.
        unread: The weight of a unit that nothing reads.

    Returns:
        The chosen candidates `(b,)`, and the Cholesky factor of their residual correlation, `(b, b)`.
    """
    picked: list[int] = []
    factor = np.zeros((len(between), min(most, len(between))))
    free = np.ones(len(between), dtype=bool)
    while len(picked) < most:
        variance = between.diagonal()
        open_ = free & (variance > MIN_VARIANCE)
        if not open_.any():
            break
        safe = np.where(open_, variance, 1)
        score = np.where(open_, gain.diagonal() / safe + unread * safe, -np.inf)
        unit = int(score.argmax())
        if picked and score[unit] < rival:
            break
        column = between[unit] / variance[unit] ** 0.5
        share = between[unit] / variance[unit]  # of its variance that each candidate loses
        lost = gain[unit] - share * (gain[unit, unit] / 2)
        _subtract(gain, share, lost)
        _subtract(gain, lost, share)
        _subtract(between, column, column)
        factor[:, len(picked)] = column
        free[unit] = False
        picked.append(unit)
    chosen = np.array(picked)
    return chosen, np.tril(factor[chosen, : len(chosen)])


def _subtract(matrix: NDArray[np.float64], left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
    """`matrix -= left right^T`, in place; without a temporary matrix, which takes most of the time."""
    dger(-1.0, right, left, a=matrix.T, overwrite_a=True)


def _array(value: Tensor) -> NDArray[np.float64]:
    return value.double().cpu().numpy().copy()


def _spread(correlation: Tensor, order: list[int], keep: int) -> list[int]:
    """Further units, each the least similar to any that is kept before it."""
    order = list(order)
    if len(order) == keep:
        return order
    nearest = correlation[:, order].amax(1) if order else torch.full_like(correlation[0], -torch.inf)
    nearest[order] = torch.inf
    while len(order) < keep:
        unit = int(nearest.argmin())
        order.append(unit)
        nearest = torch.maximum(nearest, correlation[unit])
        nearest[unit] = torch.inf
    return order

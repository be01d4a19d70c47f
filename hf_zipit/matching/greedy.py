"""The greedy clustering behind `zip_match`, in O(n^2) after the similarity.

The similarity matrix is updated in place. Each row keeps an upper bound on its largest entry. A bound is made exact
only when it is the largest of all, so one merge costs a few passes over one row and one column.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.int64]
_NEVER = np.float32(-np.inf)


@dataclass
class Budget:
    """How many merges within each model the authors' code still allows in a space. Merging updates it.

    Attributes:
        left: For each model, the merges within it that are left in the whole space.
        share: For each model, the merges within it inside one tuple of aligned groups; `None` without groups.
        closed: Whether a model has used up its merges. Its units are then no longer merged with each other.
    """

    left: list[int]
    share: int | None
    closed: list[bool]

    @classmethod
    def of(cls, sizes: tuple[int, ...], beta: float, keep: int, groups: int = 1) -> "Budget":
        """The budget of a space.

        Args:
            sizes: Units of each model.
            beta: Share of the merges that may happen within a model, in [0, 1].
            keep: Merged units.
            groups: Number of groups of the space.
        """
        models = len(sizes)
        merges = sum(sizes) - keep
        within = int((merges // models) * beta + 1e-4)
        share = merges // (models * groups) if groups > 1 else None
        return cls([within] * models, share, [False] * models)


def greedy_zip(
    similarity: NDArray[np.floating],
    sizes: tuple[int, ...],
    alpha: float,
    beta: float,
    keep: int,
    budget: Budget | None = None,
) -> tuple[Labels, float]:
    """Merge the most similar clusters until `keep` remain, in O(n^2) time and memory.

    Args:
        similarity: `(n, n)`, units of model 0 first.
        sizes: Units of each model.
        alpha: Factor on the similarity of a cluster each time it grows to N units or more, for N models, in [0, 1];
            small values favor clusters of few units.
        beta: Share of the merges that may happen within a model, in [0, 1]; unused with a budget.
        keep: Clusters to keep.
        budget: With a budget, the rules of the authors' code apply.

    Returns:
        The label of every unit, clusters ordered by their first unit, -1 for a dropped unit; and the mean of the
        similarities at which clusters were merged.

    >>> s = np.array([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> greedy_zip(s, (2, 2), alpha=0.1, beta=0.8, keep=2)[0]
    array([0, 1, 0, 1])
    """
    compat = budget is not None
    pairs = _Pairs(similarity)
    rules = _Reference(pairs, sizes, alpha, budget) if budget else _Repaired(pairs, sizes, alpha, beta, keep)
    cluster = np.arange(len(similarity))
    left = len(similarity)  # clusters
    values = []
    while left > keep:
        i, j = pairs.best_pair()
        if i < 0:
            if not compat:
                cluster = _complete(similarity, cluster, sizes, keep)
                break
            first = int(np.flatnonzero(pairs.alive)[0])  # the authors' code silently drops its first cluster
            cluster[cluster == first] = -1
            pairs.remove(first)
        else:
            values.append(float(pairs.values[i, j]))
            cluster[cluster == j] = i
            rules.merge(i, j)
        left -= 1
    kept = np.unique(cluster[cluster >= 0])
    labels = np.where(cluster >= 0, np.searchsorted(kept, cluster), -1).astype(np.int64)
    return labels, float(np.mean(values)) if values else 0.0


class _Pairs:
    """A similarity matrix and the maxima of its rows, kept up to date as pairs are merged and forbidden."""

    def __init__(self, similarity: NDArray[np.floating]) -> None:
        self.values = np.array(similarity, dtype=np.float32)
        np.fill_diagonal(self.values, _NEVER)
        n = len(self.values)
        self.alive = np.ones(n, dtype=bool)
        self.column = self.values.argmax(1)
        self.bound = self.values[np.arange(n), self.column]
        self.exact = np.ones(n, dtype=bool)

    def best_pair(self) -> tuple[int, int]:
        """The most similar pair; on ties the lowest row, then the lowest column. (-1, -1) if none is allowed."""
        while True:
            row = int(self.bound.argmax())
            if self.bound[row] == _NEVER:
                return -1, -1
            if self.exact[row]:
                column = int(self.column[row])
                return min(row, column), max(row, column)
            self._refresh(row)

    def set_column(self, i: int, values: NDArray[np.float32]) -> None:
        """Replace column i and update the maxima of the rows."""
        self.values[:, i] = values
        pointed = self.column == i
        higher = values > self.bound
        tied = (values == self.bound) & self.exact & (pointed | (self.column > i))
        self.exact[pointed & ~higher & ~tied] = False
        self.exact[higher] = True
        self.bound[higher] = values[higher]
        self.column[higher | tied] = i

    def set_row(self, i: int, values: NDArray[np.float32]) -> None:
        """Replace row i and update its maximum."""
        self.values[i] = values
        self._refresh(i)

    def remove(self, j: int) -> None:
        """Remove cluster j, which has been merged or dropped."""
        self.alive[j] = False
        self.values[j] = self.values[:, j] = _NEVER
        self.exact[self.column == j] = False
        self.bound[j] = _NEVER
        self.exact[j] = True

    def forbid(self, members: NDArray[np.bool_]) -> None:
        """Forbid merging any two of the members."""
        index = np.flatnonzero(members)
        self.values[np.ix_(index, index)] = _NEVER
        self.exact[index] = False

    def _refresh(self, row: int) -> None:
        self.column[row] = self.values[row].argmax()
        self.bound[row] = self.values[row, self.column[row]]
        self.exact[row] = True


class _Repaired:
    """The default rules.

    A merge counts against the budget of every model that has units in both clusters. The penalty `alpha` applies to
    each merge that leaves a cluster with N or more units, for N models. For two models that is every merge.
    """

    def __init__(self, pairs: _Pairs, sizes: tuple[int, ...], alpha: float, beta: float, keep: int) -> None:
        self.pairs = pairs
        self.alpha = np.float32(alpha)
        self.holds = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=1)  # (N, n): model has a unit in cluster
        self.members = np.ones(sum(sizes), dtype=np.int64)
        share = int(beta * (sum(sizes) - keep) / len(sizes) + 1e-4)
        self.budget = [max(share, size - keep) for size in sizes]
        for model, budget in enumerate(self.budget):
            if budget == 0:
                pairs.forbid(self.holds[model])

    def merge(self, i: int, j: int) -> None:
        """Merge cluster j into cluster i."""
        values = np.minimum(self.pairs.values[i], self.pairs.values[j])
        self.members[i] += self.members[j]
        if self.members[i] >= len(self.holds):
            np.multiply(values, self.alpha, out=values, where=values > 0)  # the penalty would raise negative values
        both = np.flatnonzero(self.holds[:, i] & self.holds[:, j])
        self.holds[:, i] |= self.holds[:, j]
        self.holds[:, j] = False
        self.pairs.remove(j)
        values[j] = _NEVER
        self.pairs.set_column(i, values)
        self.pairs.set_row(i, values)
        for model in both:
            self.budget[model] -= 1
            if self.budget[model] == 0:
                self.pairs.forbid(self.holds[model])


class _Reference:
    """The rules of the authors' code, defects included. A cluster belongs to the model of its first unit."""

    def __init__(self, pairs: _Pairs, sizes: tuple[int, ...], alpha: float, budget: Budget) -> None:
        self.pairs = pairs
        self.alpha = alpha
        self.budget = budget
        self.origin = np.repeat(np.arange(len(sizes)), sizes)
        self.width = sum(sizes) // len(sizes)
        self.share = [sum(sizes) if budget.share is None else budget.share] * len(sizes)
        for model, closed in enumerate(budget.closed):
            if closed:
                self._close(model)

    def merge(self, i: int, j: int) -> None:
        """Merge cluster j into cluster i."""
        pairs = self.pairs
        values = pairs.values
        column = self._penalised(np.minimum(values[:, i], values[:, j]), i, j)
        pairs.set_column(i, column)
        row = np.minimum(values[i], values[j])
        pairs.remove(j)
        row[j] = _NEVER
        pairs.set_row(i, self._penalised(row, i, j))
        origin = self.origin[i]
        if origin == self.origin[j]:
            self.share[origin] -= 1
            self.budget.left[origin] -= 1
            self.budget.closed[origin] = self.budget.left[origin] <= 0
            if self.budget.closed[origin] or self.share[origin] <= 0:
                self._close(origin)

    def _close(self, model: int) -> None:
        self.pairs.forbid(self.pairs.alive & (self.origin == model))

    def _penalised(self, values: NDArray[np.float32], i: int, j: int) -> NDArray[np.float32]:
        """The penalised similarities of a merged cluster; forbidden ones at `alpha = 0`."""
        if self.alpha > 0:
            return values * np.float32(self.alpha)
        current = np.flatnonzero(self.pairs.alive)  # at alpha = 0 positions in the shrunken matrix are masked
        for model in (self.origin[i], self.origin[j]):
            values[current[model * self.width : (model + 1) * self.width]] = _NEVER
        return values


def _complete(
    similarity: NDArray[np.floating], cluster: NDArray[np.int64], sizes: tuple[int, ...], keep: int
) -> NDArray[np.int64]:
    """Finish the clustering once every remaining pair is forbidden, which takes three or more models.

    Clusters with units of all models stay as they are. The others are split into parts, one per model. The parts of
    each model are assigned one-to-one to the remaining clusters, by mean similarity, so that no budget is exceeded.

    Args:
        similarity: `(n, n)`.
        cluster: The cluster of every unit so far, `(n,)`.
        sizes: Units of each model.
        keep: Clusters to keep.

    Returns:
        The cluster of every unit, `(n,)`, named by its first unit.
    """
    models = len(sizes)
    model_of = np.repeat(np.arange(models), sizes)
    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    complete = [m for m in members if len(np.unique(model_of[m])) == models]
    incomplete = [m for m in members if len(np.unique(model_of[m])) < models]
    open_slots = keep - len(complete)
    parts = [[part for m in incomplete if len(part := m[model_of[m] == k])] for k in range(models)]
    parts = sorted((_fit(similarity, p, open_slots) for p in parts), key=len, reverse=True)
    filled = list(parts[0])
    for k, mine in enumerate(parts[1:], start=2):
        later = sum(len(p) for p in parts[k:])
        fresh = min(len(mine), max(0, open_slots - len(filled) - later))  # slots that no later model can fill
        filled += [np.empty(0, dtype=np.int64)] * fresh
        scores = np.array([[_mean(similarity, part, units) for units in filled] for part in mine])
        scores = scores.reshape(len(mine), len(filled))
        for part, slot in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            filled[slot] = np.concatenate([filled[slot], mine[part]])
    out = np.empty_like(cluster)
    for group in (*complete, *filled):
        out[group] = group.min()
    return out


def _fit(similarity: NDArray[np.floating], parts: list[Labels], slots: int) -> list[Labels]:
    """Join the most similar parts of one model until there is a slot for each."""
    while len(parts) > slots:
        scores = np.array([[_mean(similarity, a, b) if a is not b else -np.inf for a in parts] for b in parts])
        i, j = sorted(np.unravel_index(scores.argmax(), scores.shape))
        parts = [np.concatenate([p, parts[j]]) if n == i else p for n, p in enumerate(parts) if n != j]
    return parts


def _mean(similarity: NDArray[np.floating], a: Labels, b: Labels) -> float:
    """Mean similarity of two sets of units; larger than any similarity if `b` is empty, so empty slots come first."""
    return float(similarity[np.ix_(a, b)].mean()) if len(b) else 1e6

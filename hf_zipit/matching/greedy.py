"""The greedy clustering behind `zip_match`, in O(n^2) after the similarity.

The similarity matrix is updated in place. Each row keeps an upper bound of its largest entry; a bound is only made
exact when its row comes up as the global maximum, so a step costs a few passes over one row and one column.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Labels = NDArray[np.int64]
_NEVER = np.float32(-np.inf)


@dataclass
class Budget:
    """How many merges within each model the reference still allows in a space, and inside each group of groups.

    A model is closed once a merge has used up its last one: from then on none of its units may meet.
    """

    left: list[int]
    share: int | None
    closed: list[bool]

    @classmethod
    def of(cls, sizes: tuple[int, ...], beta: float, keep: int, groups: int = 1) -> "Budget":
        """The budget of a space whose models have `sizes` units, merged down to `keep`."""
        merges = sum(sizes) - keep
        share = merges // (len(sizes) * groups) if groups > 1 else None
        return cls([int((merges // len(sizes)) * beta + 1e-4)] * len(sizes), share, [False] * len(sizes))


def greedy_zip(
    similarity: NDArray[np.floating],
    sizes: tuple[int, ...],
    alpha: float,
    beta: float,
    keep: int,
    budget: Budget | None = None,
) -> tuple[Labels, float]:
    """Cluster the units down to `keep`, by the reference's rules if its budget is given.

    Returns the label of every unit, clusters ordered by their smallest unit, and the mean of the similarities at
    which clusters were merged.
    """
    pairs, compat = _Pairs(similarity), budget is not None
    rules = _Reference(pairs, sizes, alpha, budget) if budget else _Repaired(pairs, sizes, alpha, beta, keep)
    cluster = np.arange(len(similarity))
    left, values = len(similarity), []
    while left > keep:
        i, j = pairs.best_pair()
        if i < 0:
            if not compat:
                cluster = _seat(similarity, cluster, sizes, keep)
                break
            first = int(np.flatnonzero(pairs.alive)[0])  # the reference drops its first cluster, unnoticed
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
    """A similarity matrix with its rows' maxima, under merging and forbidding of pairs."""

    def __init__(self, similarity: NDArray[np.floating]) -> None:
        self.values = np.array(similarity, dtype=np.float32)
        np.fill_diagonal(self.values, _NEVER)
        n = len(self.values)
        self.alive = np.ones(n, dtype=bool)
        self.column = self.values.argmax(1)
        self.bound = self.values[np.arange(n), self.column]
        self.exact = np.ones(n, dtype=bool)

    def best_pair(self) -> tuple[int, int]:
        """The pair with the largest entry, lowest row then lowest column on ties; (-1, -1) if none is allowed."""
        while True:
            row = int(self.bound.argmax())
            if self.bound[row] == _NEVER:
                return -1, -1
            if self.exact[row]:
                column = int(self.column[row])
                return min(row, column), max(row, column)
            self._refresh(row)

    def set_column(self, i: int, values: NDArray[np.float32]) -> None:
        """Replace column i and keep the rows' maxima right."""
        self.values[:, i] = values
        pointed = self.column == i
        higher = values > self.bound
        tied = (values == self.bound) & self.exact & (pointed | (self.column > i))
        self.exact[pointed & ~higher & ~tied] = False
        self.exact[higher] = True
        self.bound[higher] = values[higher]
        self.column[higher | tied] = i

    def set_row(self, i: int, values: NDArray[np.float32]) -> None:
        self.values[i] = values
        self._refresh(i)

    def remove(self, j: int) -> None:
        self.alive[j] = False
        self.values[j] = self.values[:, j] = _NEVER
        self.exact[self.column == j] = False
        self.bound[j], self.exact[j] = _NEVER, True

    def forbid(self, members: NDArray[np.bool_]) -> None:
        """No two of the members may be merged any more."""
        index = np.flatnonzero(members)
        self.values[np.ix_(index, index)] = _NEVER
        self.exact[index] = False

    def _refresh(self, row: int) -> None:
        self.column[row] = self.values[row].argmax()
        self.bound[row] = self.values[row, self.column[row]]
        self.exact[row] = True


class _Repaired:
    """The default rules.

    Budgets count every merge that brings two units of a model together, in any cluster. A cluster pays `alpha` for
    each merge from the size on that one unit of every model gives it; for two models that is every merge.
    """

    def __init__(self, pairs: _Pairs, sizes: tuple[int, ...], alpha: float, beta: float, keep: int) -> None:
        self.pairs, self.alpha = pairs, np.float32(alpha)
        self.holds = np.repeat(np.eye(len(sizes), dtype=bool), sizes, axis=1)  # (N, n): model k has a unit in cluster
        self.members = np.ones(sum(sizes), dtype=np.int64)
        share = int(beta * (sum(sizes) - keep) / len(sizes) + 1e-4)
        self.budget = [max(share, size - keep) for size in sizes]
        for model, budget in enumerate(self.budget):
            if budget == 0:
                pairs.forbid(self.holds[model])

    def merge(self, i: int, j: int) -> None:
        values = np.minimum(self.pairs.values[i], self.pairs.values[j])
        self.members[i] += self.members[j]
        if self.members[i] >= len(self.holds):
            np.multiply(values, self.alpha, out=values, where=values > 0)  # a penalty must not raise a negative value
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
    """The rules of the authors' code, defects included; a cluster counts as the model of its smallest unit."""

    def __init__(self, pairs: _Pairs, sizes: tuple[int, ...], alpha: float, budget: Budget) -> None:
        self.pairs, self.alpha, self.budget = pairs, alpha, budget
        self.origin = np.repeat(np.arange(len(sizes)), sizes)
        self.width = sum(sizes) // len(sizes)
        self.share = [sum(sizes) if budget.share is None else budget.share] * len(sizes)
        for model, closed in enumerate(budget.closed):
            if closed:
                self._close(model)

    def merge(self, i: int, j: int) -> None:
        values, pairs = self.pairs.values, self.pairs
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
        if self.alpha > 0:
            return values * np.float32(self.alpha)
        current = np.flatnonzero(self.pairs.alive)  # alpha = 0 masks by position in the shrunken matrix
        for model in (self.origin[i], self.origin[j]):
            values[current[model * self.width : (model + 1) * self.width]] = _NEVER
        return values


def _seat(
    similarity: NDArray[np.floating], cluster: NDArray[np.int64], sizes: tuple[int, ...], keep: int
) -> NDArray[np.int64]:
    """Finish when every remaining pair is forbidden (three models or more): seat the parts of incomplete clusters.

    Clusters that hold all models stay. The others are split by model, and each model's parts are assigned to
    different seats by their mean similarity to what already sits there, so no budget is exceeded.
    """
    model_of = np.repeat(np.arange(len(sizes)), sizes)
    members = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]
    done = [m for m in members if len(np.unique(model_of[m])) == len(sizes)]
    open_ = [m for m in members if len(np.unique(model_of[m])) < len(sizes)]
    seats = keep - len(done)
    parts = [[p for m in open_ if len(p := m[model_of[m] == k])] for k in range(len(sizes))]
    parts = sorted((_fit(similarity, p, seats) for p in parts), key=len, reverse=True)
    taken = list(parts[0])
    for k, mine in enumerate(parts[1:], start=2):
        later = sum(len(p) for p in parts[k:])
        fresh = min(len(mine), max(0, seats - len(taken) - later))  # seats that nobody after this model can fill
        taken += [np.empty(0, dtype=np.int64)] * fresh
        scores = np.array([[_mean(similarity, p, t) for t in taken] for p in mine]).reshape(len(mine), len(taken))
        for part, seat in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            taken[seat] = np.concatenate([taken[seat], mine[part]])
    out = np.empty_like(cluster)
    for group in (*done, *taken):
        out[group] = group.min()
    return out


def _fit(similarity: NDArray[np.floating], parts: list[Labels], seats: int) -> list[Labels]:
    """Join the most similar parts of one model until they have a seat each."""
    while len(parts) > seats:
        scores = np.array([[_mean(similarity, a, b) if a is not b else -np.inf for a in parts] for b in parts])
        i, j = sorted(np.unravel_index(scores.argmax(), scores.shape))
        parts = [np.concatenate([p, parts[j]]) if n == i else p for n, p in enumerate(parts) if n != j]
    return parts


def _mean(similarity: NDArray[np.floating], a: Labels, b: Labels) -> float:
    """Mean similarity of two sets of units; an empty seat beats any other."""
    return float(similarity[np.ix_(a, b)].mean()) if len(b) else 1e6

"""Similarity of units from the weights that touch them, in the coordinates of the merged model.

Everything is read from the binding's flat table; nothing here depends on an architecture.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from hf_zipit.matching.average import average_match
from hf_zipit.running import STATISTICS
from hf_zipit.specs.spaces import Binding, FeatureSpace, Row
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import along

CHUNK = 4096  # features per unit that are collected for one matrix product
EPSILON = 1e-5  # added to the size of a cluster by MuDSC's code
MIN_FEATURES = 3  # with fewer features than this, a correlation means nothing

Matches = Mapping[str, Match]


class WeightSimilarity:
    """Pearson correlation of units over all weights that touch them (Git Re-Basin; MuDSC, section 3).

    The vector of a unit holds its slice of every parameter that writes, reads or carries its space. The weights of two
    models are comparable only in the coordinates of the merged model. So the other axes of each parameter are first
    brought to merged units: read axes are summed over a merged unit, written axes averaged.

    Left out are slices along spaces without a match, classifiers, whose classes differ, and running statistics.

    Args:
        states: State dicts of the N models.
        binding: Maps each space to slices of parameters.
        compat: Follow MuDSC's code: spaces without a match are compared unit by unit, classifiers count, and sums and
            averages over merged units are swapped.
    """

    def __init__(self, states: Sequence[Mapping[str, Tensor]], binding: Binding, compat: bool = False) -> None:
        self.states = states
        self.compat = compat
        self.models = len(states)
        self.axes: dict[str, dict[int, list[Row]]] = {}  # parameter -> axis -> its rows
        self.compared: dict[str, list[Row]] = {name: [] for name in binding.spaces}  # space -> rows that are compared
        for name, rows in binding.rows(states[0]).items():
            self.axes[name] = {row.axis: [r for r in rows if r.axis == row.axis] for row in rows}
            same_shape = len({state[name].shape for state in states}) == 1
            counted = same_shape if compat else name not in binding.classifier
            if counted and not name.endswith(STATISTICS):
                for row in rows:
                    self.compared[row.space].append(row)
        sizes = {name: (space.size,) * self.models for name, space in binding.spaces.items()}
        self.unit_by_unit = {name: average_match(n) for name, n in sizes.items()}
        self.left_out = {name: Match(torch.full((sum(n),), -1), n, 0) for name, n in sizes.items()}

    def neighbours(self, space: str) -> set[str]:
        """The spaces on whose matches the similarity of this space depends."""
        found = set()
        for row in self.compared[space]:
            for axis, rows in self.axes[row.parameter].items():
                if axis != row.axis:
                    found |= {other.space for other in rows}
        return found

    def __call__(self, space: FeatureSpace, matches: Matches, *, within: bool = True) -> Tensor | None:
        """The similarity of the units of all models, in O((N n)^2) per feature.

        Args:
            space: The space whose n units (per model) to compare.
            matches: Current matches of the other spaces; some may be missing.
            within: Whether to compare units of one model with each other. If not, the content of these blocks is
                meaningless.

        Returns:
            `(N * n, N * n)` in [-1, 1], float32; `None` if too few weights can be compared.
        """
        n = space.size
        total = self.models * n
        gram = torch.zeros(total, total)
        sums = torch.zeros(total, dtype=torch.float64)
        blocks = [slice(k * n, (k + 1) * n) for k in range(self.models)]
        count = 0
        for chunk in self._chunks(space, matches):  # one (n, features) per model
            count += chunk[0].shape[1]
            for i, x in enumerate(chunk):
                sums[blocks[i]] += x.sum(1, dtype=torch.float64)
                if not within:
                    gram.diagonal()[blocks[i]] += x.square().sum(1)
                for j in range(i if within else i + 1, self.models):
                    gram[blocks[i], blocks[j]].addmm_(x, chunk[j].T)
        for upper, lower in combinations(blocks, 2):
            gram[lower, upper] = gram[upper, lower].T
        return _pearson(gram, sums, count, self.compat) if count >= MIN_FEATURES else None

    def _chunks(self, space: FeatureSpace, matches: Matches) -> Iterator[list[Tensor]]:
        """The vectors of the units in pieces: a list of `(n, features)`, one per model."""
        pieces: list[list[Tensor]] = []
        for row in self.compared[space.name]:
            if self._comparable(row, matches):
                pieces.append([self._slice(row, space, matches, k) for k in range(self.models)])
            if sum(piece[0].shape[1] for piece in pieces) >= CHUNK:
                yield [torch.cat(parts, 1) for parts in zip(*pieces, strict=True)]
                pieces = []
        if pieces:
            yield [torch.cat(parts, 1) for parts in zip(*pieces, strict=True)]

    def _comparable(self, row: Row, matches: Matches) -> bool:
        """Whether a row can be compared: grouped kernels, indexed inside their groups, need matches of both sides."""
        axes = self.axes[row.parameter]
        if self.compat or not any(r.local for rows in axes.values() for r in rows):
            return True
        return all(r.space in matches for axis, rows in axes.items() if axis != row.axis for r in rows)

    def _slice(self, row: Row, space: FeatureSpace, matches: Matches, model: int) -> Tensor:
        """The part of the units' vectors that comes from one parameter, `(n, features)`."""
        value = self.states[model][row.parameter].float()
        axes = self.axes[row.parameter]
        for axis, rows in axes.items():
            if axis != row.axis:
                value = self._merged(value, axis, rows, matches, model)
        if row.local:
            return self._columns(value, row, space, matches, model)
        value = value.movedim(row.axis, 0).narrow(0, row.offset, row.length)
        return value.reshape(row.before, space.size, -1).movedim(1, 0).flatten(1)

    def _merged(self, value: Tensor, axis: int, rows: list[Row], matches: Matches, model: int) -> Tensor:
        """Bring one axis to merged units: written axes are averaged over a merged unit, read axes summed."""
        missing = self.unit_by_unit if self.compat else self.left_out
        known = {row.space: matches.get(row.space, missing[row.space]) for row in rows}
        for row in rows:
            match = known[row.space]
            if row.local or (row.role == "read") != self.compat:
                continue
            share = self.models / (match.counts + (EPSILON if self.compat else 0))  # (m,)
            if match.width and (share != 1).any():
                share = share[match.of(model)].repeat(row.before).repeat_interleave(row.after)
                part = value.narrow(axis, row.offset, row.length)
                scaled = part * share.view(-1, *[1] * (value.ndim - axis - 1))
                value = value.slice_scatter(scaled, axis, row.offset, row.offset + row.length)
        return along(value, axis, rows, known, model)

    def _columns(self, value: Tensor, row: Row, space: FeatureSpace, matches: Matches, model: int) -> Tensor:
        """Vectors from the input axis of a grouped kernel: unit i of group g is column i of the rows of group g.

        The rows are in merged coordinates already; `order` is the merged group of each group.
        """
        groups = space.size // row.length
        value = value.reshape(groups, -1, *value.shape[1:])  # (G, out / G, in / G, ...)
        written = self.axes[row.parameter].get(0, [])
        if written and written[0].space in matches:
            match = matches[written[0].space]
            order = match.of(model).view(groups, -1).amax(1) // (match.width // groups)
            value = value[order]
        return value.movedim(2, 1).reshape(space.size, -1)


def _pearson(gram: Tensor, sums: Tensor, count: int, compat: bool) -> Tensor:
    """Correlation of vectors from their Gram matrix; 0 for a constant vector. `gram` is overwritten.

    Args:
        gram: Inner products of the vectors, `(n, n)`.
        sums: Sum of the entries of each vector, `(n,)`.
        count: Entries of each vector.
        compat: Clamp the product of deviations as MuDSC's code does.
    """
    mean = (sums / count).float()
    covariance = gram.div_(count).addr_(mean, mean, alpha=-1)
    variance = covariance.diagonal().clone()
    if compat:
        deviation = variance.sqrt()
        return covariance / torch.outer(deviation, deviation).clamp(min=1e-7)
    alive = variance > 1e-6 * mean.square()
    scale = torch.where(alive, variance, 1).rsqrt() * alive
    return covariance.mul_(scale).mul_(scale[:, None]).clamp_(-1, 1)


def readers(
    states: Sequence[Mapping[str, Tensor]], binding: Binding, space: FeatureSpace, covariance: Tensor
) -> Tensor | None:
    """What the layers that read a space see of an error of its units.

    The squared norm of `readers @ e` is the squared error at the outputs of these layers, before their norms, for
    errors `e` of the units in units of their standard deviations. Every layer has the same weight: its error is divided
    by its output variance. Each model has rows of its own, as no layer reads units of two models.

    Args:
        states: State dicts of the N models.
        binding: Maps each space to slices of parameters.
        space: The space whose n units (per model) are read.
        covariance: Covariance of the units of all models, `(N * n, N * n)`.

    Returns:
        `(r, N * n)`, where `r` is at most `N * n`, in float32; `None` if nothing reads the space. Where models have
        different numbers of units, N * n is their sum.
    """
    roots = []
    start = 0
    for model, state in enumerate(states):
        n = space.of(model).size
        mine = slice(start, start + n)
        table = binding.of(model).table
        reading = [row for row in table if row.space == space.name and row.role == "read" and not row.local]
        if not reading:
            return None
        varies = covariance[mine, mine].float()
        deviations = varies.diagonal().clamp(min=0).sqrt()
        parts = []
        for row in reading:
            value = state[row.parameter].to(varies).movedim(row.axis, 0).narrow(0, row.offset, row.length)
            value = value.reshape(row.before, n, -1).movedim(1, 0).flatten(1).T  # (outputs, n)
            loudness = ((value @ varies) * value).sum()
            value = value * deviations
            rounding = torch.finfo(value.dtype).eps * value.square().sum()  # constant units are read as nothing
            parts.append(value * loudness.clamp(min=rounding.clamp(min=torch.finfo(value.dtype).tiny)).rsqrt())
        roots.append(functional.pad(_shortened(torch.cat(parts)), (start, len(covariance) - start - n)))
        start += n
    return torch.cat(roots)


def _shortened(root: Tensor) -> Tensor:
    """A matrix with the same `root^T root`, and no more rows than columns."""
    if len(root) <= root.shape[1]:
        return root
    gram = root.T @ root
    gram.diagonal().add_(1e-6 * gram.diagonal().mean().clamp(min=1e-30))
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        return factor.mT
    triangle: Tensor = torch.linalg.qr(root, mode="r").R  # slower, but no unit is too much like others for it
    return triangle

"""Similarity of units from the weights that touch them, in the coordinates of the merged model.

Everything is read from the binding's flat table: no architecture is known here.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding, FeatureSpace, Row
from hf_zipit.transform.match import Match, average_match
from hf_zipit.transform.transform import along

CHUNK = 4096  # features of a unit that are gathered before they are multiplied
SAFE = 1e-5  # what the authors' code adds to the size of a cluster
OWN = 1e-6  # how much a unit counts that nothing reads, of one that is read
ENOUGH = 3  # fewer features than this have no correlation to speak of

Matches = Mapping[str, Match]


class WeightSimilarity:
    """Pearson correlation of units over all weights that touch them (Git Re-Basin; MuDSC, section 3).

    A unit's vector holds its slice of every parameter that writes, reads or carries its space. The other axes of
    these parameters are brought to merged units first, as they are in the merged model: read axes are summed over
    what is merged, written axes averaged. Only that makes the weights of two models comparable, so slices along
    spaces that have no match are left out, and so are the classifiers, whose classes differ, and norms' running
    statistics.

    Args:
        states: the models' state dicts.
        binding: where the spaces are in them.
        compat: follow the authors' code: unmatched spaces count unit by unit, classifiers count, and sums and
            averages over merged units are swapped.
    """

    def __init__(self, states: Sequence[Mapping[str, Tensor]], binding: Binding, compat: bool = False) -> None:
        self.states, self.compat, self.models = states, compat, len(states)
        self.axes: dict[str, dict[int, list[Row]]] = {}
        self.entries: dict[str, list[Row]] = {name: [] for name in binding.spaces}
        for name, rows in binding.rows(states[0]).items():
            self.axes[name] = {row.axis: [r for r in rows if r.axis == row.axis] for row in rows}
            alike = len({state[name].shape for state in states}) == 1
            counted = alike if compat else name not in binding.classifier
            if counted and not name.endswith(("running_mean", "running_var")):
                for row in rows:
                    self.entries[row.space].append(row)
        sizes = {name: (space.size,) * self.models for name, space in binding.spaces.items()}
        self.unit_by_unit = {name: average_match(n) for name, n in sizes.items()}
        self.left_out = {name: Match(torch.full((sum(n),), -1), n, 0) for name, n in sizes.items()}

    def neighbours(self, space: str) -> set[str]:
        """The spaces on whose matches the similarity of this one depends."""
        others = (rows for row in self.entries[space] for a, rows in self.axes[row.parameter].items() if a != row.axis)
        return {row.space for rows in others for row in rows}

    def __call__(self, space: FeatureSpace, matches: Matches, *, within: bool = True) -> Tensor | None:
        """The similarity `(N * n, N * n)` in [-1, 1], float32; `None` where too few weights can be compared.

        Args:
            space: whose units to compare.
            matches: the current matches of the other spaces, as far as there are any.
            within: whether to compare units of one model with each other; else these blocks hold anything.
        """
        n, total = space.size, self.models * space.size
        gram, sums = torch.zeros(total, total), torch.zeros(total, dtype=torch.float64)
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
        return _pearson(gram, sums, count, self.compat) if count >= ENOUGH else None

    def _chunks(self, space: FeatureSpace, matches: Matches) -> Iterator[list[Tensor]]:
        """The units' vectors in pieces, each `(n, features)` for every model."""
        pieces: list[list[Tensor]] = []
        for row in self.entries[space.name]:
            if self._comparable(row, matches):
                pieces.append([self._slice(row, space, matches, k) for k in range(self.models)])
            if sum(piece[0].shape[1] for piece in pieces) >= CHUNK:
                yield [torch.cat(parts, 1) for parts in zip(*pieces, strict=True)]
                pieces = []
        if pieces:
            yield [torch.cat(parts, 1) for parts in zip(*pieces, strict=True)]

    def _comparable(self, row: Row, matches: Matches) -> bool:
        """Grouped kernels count places inside groups: without a match of both sides they tell nothing."""
        axes = self.axes[row.parameter]
        if self.compat or not any(r.local for rows in axes.values() for r in rows):
            return True
        return all(r.space in matches for axis, rows in axes.items() if axis != row.axis for r in rows)

    def _slice(self, row: Row, space: FeatureSpace, matches: Matches, model: int) -> Tensor:
        """The part of every unit's vector that lies in one parameter, `(n, features)`."""
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
        """Bring one axis to merged units: written axes averaged over what is merged, read axes summed."""
        missing = self.unit_by_unit if self.compat else self.left_out
        known = {row.space: matches.get(row.space, missing[row.space]) for row in rows}
        for row in rows:
            match = known[row.space]
            if row.local or (row.role == "read") != self.compat:
                continue
            share = self.models / (match.counts + (SAFE if self.compat else 0))  # (m,)
            if match.width and (share != 1).any():
                share = share[match.of(model)].repeat(row.before).repeat_interleave(row.after)
                part = value.narrow(axis, row.offset, row.length)
                scaled = part * share.view(-1, *[1] * (value.ndim - axis - 1))
                value = value.slice_scatter(scaled, axis, row.offset, row.offset + row.length)
        return along(value, axis, rows, known, model)

    def _columns(self, value: Tensor, row: Row, space: FeatureSpace, matches: Matches, model: int) -> Tensor:
        """Input columns of a grouped kernel: unit i of group g is column i of the rows of group g.

        The rows are at merged places by now; `order` says where the groups have gone.
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
    """Correlation from the Gram matrix and sums of vectors with `count` entries; 0 for a constant vector."""
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
) -> Tensor:
    """How errors of units add up in the layers that read them, `(N * n, N * n)`, block by block of a model.

    `Q` such that `e' Q e` is the squared error of all these layers' outputs, before their norms, for errors `e` of the
    units in their own standard deviations; every layer counts alike, as a share of what its output varies. A little is
    added for the units' own sake.

    Args:
        states: the models' state dicts.
        binding: where the space is in them.
        space: whose readers.
        covariance: of the units of all models, `(N * n, N * n)`.
    """
    n, out = space.size, torch.zeros_like(covariance)
    reading = [row for row in binding.table if row.space == space.name and row.role == "read" and not row.local]
    for model, state in enumerate(states):
        mine = slice(model * n, (model + 1) * n)
        for row in reading:
            value = state[row.parameter].to(out).movedim(row.axis, 0).narrow(0, row.offset, row.length)
            value = value.reshape(row.before, n, -1).movedim(1, 0).flatten(1)  # (n, outputs)
            gram = value @ value.T
            out[mine, mine] += gram / (gram * covariance[mine, mine]).sum().clamp(min=1e-30)
    deviation = covariance.diagonal().clamp(min=0).sqrt()
    out = out * deviation * deviation[:, None]
    return out + OWN * (out.diagonal().mean().clamp(min=1e-30) * torch.eye(len(out)).to(out))

"""From the facts of a forward pass to feature spaces: connected components, then groups that move as one."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from hf_zipit.tracing.facts import NOBODY, Facts, Label, varying
from hf_zipit.tracing.groups import Axis, Solver, TracedSpace, spaces_of

Point = tuple[str, str]  # module, "in" or "out"

FIXED = -1


Noted = tuple[int, int, list[Label]]  # number of the tensor, number of its axes, labels


@dataclass(frozen=True, eq=False)
class Shown:
    """The input or output of a module: which tensor it is, and the units along its axes."""

    tensor: int
    ndim: int
    axes: dict[int, Tensor]
    spread: tuple[Tensor, ...] = ()  # units that lie along several axes at once

    def mixed(self, units: Tensor) -> bool:
        """Whether other units than these may move: then positions are not the same in every model."""
        others = [x for x in (*self.axes.values(), *self.spread) if x is not units]
        return any(bool((x != FIXED).any()) for x in others)


@dataclass(frozen=True, eq=False)
class Local:
    """A grouped convolution: its input axis counts inside a group; `units` are its input channels (C,)."""

    groups: int
    units: Tensor | None


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass tells about a model.

    `axes` holds the unit at every index of every parameter axis, `FIXED` where nothing may move; `points` the units
    in the inputs and outputs of modules; `frozen` says why an axis, or a part of it, cannot move.
    """

    axes: dict[Axis, Tensor]
    local: dict[str, Local]
    spaces: tuple[TracedSpace, ...]
    points: dict[Point, Shown]
    frozen: dict[Axis, str]
    unused: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of axis places that cannot move because of an operation, not because of what they are."""
        total = sum(len(units) for units in self.axes.values())
        held = [units for axis, units in self.axes.items() if self.frozen.get(axis, "output") not in EXPECTED]
        return sum(int((units == FIXED).sum()) for units in held) / max(total, 1)


EXPECTED = ("output", "used nowhere else", "never used")


def solve(
    facts: Facts,
    axes: Mapping[Axis, Label],
    local: Mapping[str, Local],
    points: Mapping[Point, Noted | None],
    unused: tuple[str, ...],
) -> Trace:
    """Unite what is equal, find the units that may change places, and name what cannot move."""
    kind, members = _classes(facts)
    fixed = {int(c): why for label, why in reversed(facts.fixed) for c in np.unique(kind[label.numpy()])}
    fixed[int(kind[NOBODY])] = "padding"
    solver = Solver(kind, fixed, {key: kind[units.numpy()] for key, units in axes.items()}, members)
    for name, axis in solver.axes:
        if name in unused:
            fixed.update((int(c), "never used") for c in solver.axes[name, axis] if int(c) not in fixed)
    spaces = spaces_of(solver)
    free = np.zeros(kind.max() + 1, dtype=bool)
    free[[unit for space in spaces for unit in space.units]] = True
    frozen = {}
    for key, units in solver.axes.items():
        held = units[~free[units]]
        if len(held):
            frozen[key] = fixed.get(int(held[0]), "groups that differ or overlap")
    return Trace(
        {key: torch.from_numpy(np.where(free[v], v, FIXED)) for key, v in solver.axes.items()},
        {k: Local(v.groups, None if v.units is None else _moved(v.units, kind, free)) for k, v in local.items()},
        spaces,
        {point: _shown(noted, kind, free) for point, noted in points.items() if noted is not None},
        frozen,
        unused,
    )


def _moved(units: Tensor, kind: np.ndarray, free: np.ndarray) -> Tensor:
    found = kind[units.numpy()]
    return torch.from_numpy(np.where(free[found], found, FIXED))


def _shown(noted: Noted, kind: np.ndarray, free: np.ndarray) -> Shown:
    tensor, ndim, labels = noted
    axes, spread = {}, []
    for label in labels:
        dims, units = sorted(varying(label)), _moved(label.flatten(), kind, free)
        if len(dims) == 1:
            axes[dims[0]] = units
        else:
            spread.append(units)
    return Shown(tensor, ndim, axes, tuple(spread))


def _classes(facts: Facts) -> tuple[np.ndarray, dict[int, frozenset[int]]]:
    """Connected components of the equalities; groups with the same members are one group."""
    equal, fixed = _joined(facts.equal), [label.numpy() for label, _ in facts.fixed]

    def held(kind: np.ndarray) -> set[int]:
        return {int(kind[NOBODY])}.union(*(kind[ids].tolist() for ids in fixed))

    inside = np.unique(_joined(facts.inside), axis=1)
    while True:
        graph = coo_matrix((np.ones(equal.shape[1]), (equal[0], equal[1])), shape=(facts.count, facts.count))
        _, kind = connected_components(graph, directed=False)
        members = defaultdict(set)
        for unit, group in np.unique(kind[inside], axis=1).T.tolist():
            if unit != group:
                members[group].add(unit)
        found: dict[frozenset[int], int] = {}
        twins = [(found.setdefault(frozenset(m), g), g) for g, m in sorted(members.items())]
        first = np.zeros(kind.max() + 1, dtype=np.int64)
        first[kind[::-1]] = np.arange(facts.count)[::-1]  # one id of each class
        same = [(first[a], first[b]) for a, b in (*twins, *_determined(members, held(kind))) if a != b]
        if not same:
            return kind, {g: frozenset(m) for g, m in members.items()}
        equal = np.concatenate([equal, np.array(same).T], axis=1)


def _determined(members: Mapping[int, set[int]], fixed: set[int]) -> list[tuple[int, int]]:
    """Units that immovable groups tell apart inside a group (channels of a head under rotary positions).

    They keep their place in the group wherever it goes, so they and the group are one.
    """
    places = defaultdict(set)
    for group in members.keys() & fixed:
        for unit in members[group]:
            places[unit].add(group)
    out = []
    for group, units in members.items():
        marks = Counter(frozenset(places[u]) for u in units if u in places)
        if group not in fixed:
            out += [(group, u) for u in units if u in places and u not in fixed and marks[frozenset(places[u])] == 1]
    return out


def _joined(pairs: list[Tensor]) -> np.ndarray:
    return torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)

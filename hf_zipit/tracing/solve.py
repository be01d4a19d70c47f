"""Solve the facts of a forward pass for feature spaces: connected components, then groups that move as one."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from hf_zipit.tracing.facts import NOBODY, Facts, Label, varying
from hf_zipit.tracing.groups import Axis, Solver, TracedSpace, nested, spaces_of

Point = tuple[str, str]  # module, "in" or "out"

FIXED_UNIT = -1  # stands for every unit that cannot be permuted
EXPECTED = ("output", "used nowhere else", "never used")  # reasons that hold for any model

Noted = tuple[int, int, list[Label]]  # number of the tensor, number of its axes, labels


@dataclass(frozen=True, eq=False)
class Shown:
    """The input or output of a module.

    Attributes:
        tensor: Number of the tensor; equal for the output of a module and the input of the next.
        ndim: Number of axes.
        axes: Axis -> the units along it.
        spread: Units that lie along several axes at once.
    """

    tensor: int
    ndim: int
    axes: dict[int, Tensor]
    spread: tuple[Tensor, ...] = ()

    def mixed(self, units: Tensor) -> bool:
        """Whether other units than these are free: then samples and positions differ between permuted models."""
        others = [x for x in (*self.axes.values(), *self.spread) if x is not units]
        return any(bool((x != FIXED_UNIT).any()) for x in others)


@dataclass(frozen=True, eq=False)
class Local:
    """A grouped convolution, whose input axis counts inside a group; `units` are its input channels, `(C,)`."""

    groups: int
    units: Tensor | None


@dataclass(frozen=True, eq=False)
class Trace:
    """The feature spaces of a model, found in one forward pass.

    Attributes:
        axes: Parameter axis -> the unit at every index; `FIXED_UNIT` where nothing can be permuted.
        local: Parameter -> the grouped convolution whose weight it is.
        spaces: The feature spaces.
        points: Input or output of a module -> the units in it.
        frozen: Parameter axis -> why it, or a part of it, is fixed.
        unused: Parameters that the forward pass did not read.
    """

    axes: dict[Axis, Tensor]
    local: dict[str, Local]
    spaces: tuple[TracedSpace, ...]
    points: dict[Point, Shown]
    frozen: dict[Axis, str]
    unused: tuple[str, ...]

    @property
    def fixed_share(self) -> float:
        """The share of all indices of parameter axes that an operation of this model fixes."""
        total = sum(len(units) for units in self.axes.values())
        held = [units for axis, units in self.axes.items() if self.frozen.get(axis, "output") not in EXPECTED]
        return sum(int((units == FIXED_UNIT).sum()) for units in held) / max(total, 1)


def solve(
    facts: Facts,
    axes: Mapping[Axis, Label],
    local: Mapping[str, Local],
    points: Mapping[Point, Noted | None],
    unused: tuple[str, ...],
) -> Trace:
    """Unite equal units, find the units that can be permuted, and give the reason for all others.

    Args:
        facts: The facts of a forward pass.
        axes: Parameter axis -> the unit at every index.
        local: Parameter -> the grouped convolution whose weight it is.
        points: Input or output of a module -> what was seen there; `None` for modules that ran twice.
        unused: Parameters that the forward pass did not read.
    """
    solver = _solver(facts, axes, unused)
    while pairs := nested(solver):
        ids = {int(c): i for i, c in reversed(list(enumerate(solver.kind)))}  # one id of each class
        facts.equal.append(torch.tensor([[ids[a], ids[b]] for a, b in pairs]).t())
        solver = _solver(facts, axes, unused)
    kind, fixed = solver.kind, solver.fixed
    spaces = spaces_of(solver)
    free = np.zeros(kind.max() + 1, dtype=bool)
    free[[unit for space in spaces for unit in space.units]] = True
    frozen = {}
    for key, units in solver.axes.items():
        held = units[~free[units]]
        if len(held):
            frozen[key] = fixed.get(int(held[0]), "groups that differ or overlap")
    return Trace(
        axes={key: torch.from_numpy(np.where(free[v], v, FIXED_UNIT)) for key, v in solver.axes.items()},
        local={
            k: Local(v.groups, None if v.units is None else _classed(v.units, kind, free)) for k, v in local.items()
        },
        spaces=spaces,
        points={point: _shown(noted, kind, free) for point, noted in points.items() if noted is not None},
        frozen=frozen,
        unused=unused,
    )


def keep_order(trace: Trace, numbers: Iterable[int]) -> tuple[Trace, frozenset[Axis]] | None:
    """A trace in which the units of some spaces keep their order inside their groups, so that only groups move.

    Args:
        trace: The trace.
        numbers: The numbers of the spaces.

    Returns:
        The trace, in which an entry per group takes the place of its units, and the axes on which it does; `None` if
        the spaces have no groups of several units.
    """
    spaces, axes, changed = list(trace.spaces), dict(trace.axes), set[Axis]()
    for number in numbers:
        space = spaces[number]
        if space.axis is None or len(space.cells) == space.size:
            return None
        tables = [s for s in spaces if s.axis == space.axis and len(s.cells) == s.size]
        if not tables:
            fresh = 1 + max(int(units.max()) for units in (*axes.values(), torch.tensor(space.units)))
            spaces[number] = TracedSpace(tuple((fresh + i,) for i in range(len(space.cells))), space.axis)
        table = (*tables, spaces[number])[0]
        group_of = {unit: table.units[i] for i, cell in enumerate(space.cells) for unit in cell}
        for key, units in axes.items():
            mine = [group_of.get(unit, unit) for unit in units.tolist()]
            if mine != units.tolist():
                axes[key] = torch.tensor(mine)
                changed.add(key)
    return replace(trace, axes=axes, spaces=tuple(spaces)), frozenset(changed)


def _solver(facts: Facts, axes: Mapping[Axis, Label], unused: tuple[str, ...]) -> Solver:
    kind, members = _classes(facts)
    fixed = {int(c): why for label, why in reversed(facts.fixed) for c in np.unique(kind[label.numpy()])}
    fixed[int(kind[NOBODY])] = "padding"
    solver = Solver(kind, fixed, {key: kind[units.numpy()] for key, units in axes.items()}, members)
    for name, axis in solver.axes:
        if name in unused:
            fixed.update((int(c), "never used") for c in solver.axes[name, axis] if int(c) not in fixed)
    return solver


def _classed(units: Tensor, kind: np.ndarray, free: np.ndarray) -> Tensor:
    """The class of each unit, `FIXED_UNIT` for fixed ones."""
    found = kind[units.numpy()]
    return torch.from_numpy(np.where(free[found], found, FIXED_UNIT))


def _shown(noted: Noted, kind: np.ndarray, free: np.ndarray) -> Shown:
    tensor, ndim, labels = noted
    axes = {}
    spread = []
    for label in labels:
        dims = sorted(varying(label))
        units = _classed(label.flatten(), kind, free)
        if len(dims) == 1:
            axes[dims[0]] = units
        else:
            spread.append(units)
    return Shown(tensor, ndim, axes, tuple(spread))


def _classes(facts: Facts) -> tuple[np.ndarray, dict[int, frozenset[int]]]:
    """The class of each unit id, and the members of each group. Groups with the same members are one group."""
    equal = _joined(facts.equal)
    fixed = [label.numpy() for label, _ in facts.fixed]

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
    """Units to unite with their group, because fixed groups distinguish them from all other units in it.

    For example, rotary position embeddings fix the order of the channels inside a head. Such units keep their index in
    the group wherever the group moves.
    """
    marks_of = defaultdict(set)
    for group in members.keys() & fixed:
        for unit in members[group]:
            marks_of[unit].add(group)
    out = []
    for group, units in members.items():
        if group in fixed:
            continue
        marks = Counter(frozenset(marks_of[u]) for u in units if u in marks_of)
        marked = (u for u in units if u in marks_of and u not in fixed)
        out += [(group, u) for u in marked if marks[frozenset(marks_of[u])] == 1]
    return out


def _joined(pairs: list[Tensor]) -> np.ndarray:
    return torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)

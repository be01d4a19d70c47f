"""Find the feature spaces of a trace and their groups: units on the same axes, in cells that move as a whole."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Axis = tuple[str, int]  # parameter, axis


@dataclass(frozen=True)
class TracedSpace:
    """Units that occur on the same axes and can be permuted.

    With several cells, a permutation moves whole cells, and units inside their cell. A space with cells of one unit is
    a group axis itself.

    Attributes:
        cells: The units of each cell.
        axis: Group axis; cell i of all its spaces move together. `None` for a single cell.
    """

    cells: tuple[tuple[int, ...], ...]
    axis: str | None = None

    @property
    def units(self) -> tuple[int, ...]:
        """All units, cell by cell."""
        return tuple(unit for cell in self.cells for unit in cell)

    @property
    def size(self) -> int:
        """The number of units."""
        return sum(map(len, self.cells))


@dataclass
class Solver:
    """Classes of equal units, and what is known about them.

    Attributes:
        kind: Unit id -> class of equal units.
        fixed: Class -> why it is fixed.
        axes: Parameter axis -> the class at every index.
        members: Group class -> the classes of its units.
        groups: Unit class -> the classes of the groups that it is in.
    """

    kind: np.ndarray
    fixed: dict[int, str]
    axes: dict[Axis, np.ndarray]
    members: dict[int, frozenset[int]]
    groups: dict[int, frozenset[int]] = field(default_factory=dict)


def spaces_of(solver: Solver) -> tuple[TracedSpace, ...]:
    """The spaces: units that occur on the same axes, divided into cells. A group stays if its members cannot follow."""
    found, heads = _divided(solver)
    return tuple(_arrange(found, heads, solver))


def nested(solver: Solver) -> list[tuple[int, int]]:
    """Pairs of units to unite because their groups lie inside other groups, so that no axis can number them.

    For example, a stream whose convolutions make two channels from each of its own, in every stage anew. Only the
    outermost groups can move then, and what is inside them keeps its order.
    """
    found, _ = _divided(solver)
    cells = {g for keys in found for key in keys for g in key}
    for keys in found:
        if _exact(keys, solver):
            continue
        units = {u for us in keys.values() for u in us}
        blocks = {frozenset(solver.members[g] & units) for key in keys for g in key}
        laminar = all(a <= b or b <= a or not a & b for a in blocks for b in blocks)
        if laminar and len({len(block) for block in blocks}) > 1:
            return _trees(units, cells, solver)
    return []


def _trees(units: Iterable[int], cells: set[int], solver: Solver) -> list[tuple[int, int]]:
    """Pairs of units to unite: what is in one group with a unit, directly or through others; `[]` if that is all."""
    pairs: list[tuple[int, int]] = []
    left, trees = set(units), 0
    while left:
        tree, border = set[int](), {min(left)}
        while border:
            tree |= border
            groups = {g for unit in border for g in solver.groups.get(unit, ()) if g in cells}
            border = {u for g in groups for u in solver.members[g]} - tree
        pairs += [(min(tree), unit) for unit in tree if unit != min(tree)]
        left -= tree
        trees += 1
    return pairs if trees > 1 else []


def _divided(solver: Solver) -> tuple[list[dict[frozenset[int], list[int]]], Mapping[int, object]]:
    """Units on the same axes, divided by their groups; and the groups that are on axes themselves, with these axes."""
    inside = defaultdict(set)
    shown = {unit for column in solver.axes.values() for unit in column.tolist()}
    for group, units in solver.members.items():
        if len(units) > 1 or group in solver.fixed or group in shown:  # otherwise a group says nothing of its one unit
            for unit in units:
                inside[unit].add(group)
    solver.groups = {unit: frozenset(groups) for unit, groups in inside.items()}
    where: dict[int, Counter[Axis]] = defaultdict(Counter)
    order: dict[int, tuple[int, int, int]] = {}
    for number, (key, column) in enumerate(solver.axes.items()):
        repeats = Counter(column.tolist())
        for index, unit in enumerate(column.tolist()):
            where[unit][key] += 1
            order[unit] = min(order.get(unit, (1 << 30, 0, 0)), (repeats[unit], number, index))
    alike: dict[object, list[int]] = defaultdict(list)
    for unit in sorted(order, key=order.__getitem__):
        if where[unit].total() == 1 and unit not in solver.members:
            solver.fixed.setdefault(unit, "used nowhere else")
        if unit not in solver.fixed and unit not in solver.members:
            alike[frozenset(where[unit].items())].append(unit)
    heads = {g: frozenset(where[g].items()) for g in solver.members if g in where and g not in solver.fixed}
    return [_cells(solver, units) for units in alike.values()], heads


def _cells(solver: Solver, units: list[int]) -> dict[frozenset[int], list[int]]:
    """The units divided by the groups that they are in, except groups that hold all of them."""
    everyone = frozenset(units)
    common = frozenset.intersection(*(solver.groups.get(u, frozenset()) for u in units))
    whole = {g for g in common if everyone <= solver.members[g] and len(everyone) > 1}
    cells = defaultdict(list)
    for unit in units:
        cells[solver.groups.get(unit, frozenset()) - whole].append(unit)
    return dict(cells)


def _arrange(
    found: list[dict[frozenset[int], list[int]]], heads: Mapping[int, object], solver: Solver
) -> Iterable[TracedSpace]:
    """Decide which cells move as a whole: those whose groups hold no fixed unit."""
    exact = [_exact(cells, solver) for cells in found]
    while True:
        movable = {g for cells, ok in zip(found, exact, strict=True) if ok for key in cells for g in key}
        following = {
            u for cells, ok in zip(found, exact, strict=True) if ok and any(cells) for us in cells.values() for u in us
        }
        stuck = {g for g in movable if g in solver.fixed or not solver.members[g] - solver.members.keys() <= following}
        again = [
            ok and not any(g in stuck for key in cells for g in key) for cells, ok in zip(found, exact, strict=True)
        ]
        if again == exact:
            break
        exact = again
    axes = _numbered([list(cells) for cells, ok in zip(found, exact, strict=True) if ok and any(cells)])
    if axes is None:
        axes, exact = {}, [ok and not any(cells) for cells, ok in zip(found, exact, strict=True)]
    for cells, ok in zip(found, exact, strict=True):
        if ok and not any(cells):
            yield TracedSpace((tuple(next(iter(cells.values()))),))
        elif ok:
            ranked = sorted((axes[next(iter(key))], us) for key, us in cells.items())
            yield TracedSpace(tuple(tuple(us) for _, us in ranked), ranked[0][0][0])
        else:
            yield from (TracedSpace((tuple(us),)) for us in cells.values() if len(us) > 1)
    tables: dict[tuple[object, str], list[int]] = defaultdict(list)
    for group in sorted(heads.keys() & axes.keys(), key=axes.__getitem__):
        tables[heads[group], axes[group][0]].append(group)
    yield from (TracedSpace(tuple((g,) for g in groups), name) for (_, name), groups in tables.items())


def _exact(cells: Mapping[frozenset[int], list[int]], solver: Solver) -> bool:
    """Whether the cells have equal sizes, and each group holds exactly one of them."""
    if not any(cells):
        return True
    units = {u for us in cells.values() for u in us}
    holds = all(solver.members[g] & units == frozenset(us) for key, us in cells.items() for g in key)
    above = all(not solver.groups.get(g) or _same_above(g, cells, solver) for key in cells for g in key)
    return frozenset() not in cells and len({len(us) for us in cells.values()}) == 1 and holds and above


def _same_above(group: int, cells: Mapping[frozenset[int], list[int]], solver: Solver) -> bool:
    """Whether the groups that contain this group contain a group of every cell."""
    return all(any(g in solver.members[top] for g in key) for top in solver.groups[group] for key in cells)


def _numbered(spaces: list[list[frozenset[int]]]) -> dict[int, tuple[str, int]] | None:
    """Number the cells so that equal numbers move together: group -> (axis, number). `None` if that is impossible."""
    groups = sorted({g for keys in spaces for key in keys for g in key})
    index = {g: i for i, g in enumerate(groups)}
    chains = [(index[g], index[h]) for keys in spaces for key in keys for g in key for h in key]
    ties = [(index[g], index[min(keys[0])]) for keys in spaces for key in keys for g in key]
    head = _components(len(groups), chains)
    axis = _components(len(groups), chains + ties)
    number: dict[int, dict[int, int]] = defaultdict(dict)
    for keys in spaces:
        for key in keys:
            mine = number[axis[index[min(key)]]]
            mine.setdefault(head[index[min(key)]], len(mine))
    for keys in spaces:
        heads = {head[index[min(key)]] for key in keys}
        if len(heads) != len(keys) or heads != set(number[axis[index[min(keys[0])]]]):
            return None
    return {g: (f"g{axis[i]}", number[axis[i]][head[i]]) for g, i in index.items()}


def _components(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    if not pairs:
        return list(range(count))
    a, b = zip(*pairs, strict=True)
    graph = coo_matrix((np.ones(len(pairs)), (a, b)), shape=(count, count))
    found: list[int] = connected_components(graph, directed=False)[1].tolist()
    return found

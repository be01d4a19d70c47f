"""Checks of a trace: moving its units keeps the logits, and it groups the parameters as a declared spec does."""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.spaces import Binding
from hf_zipit.tracing.groups import Axis
from hf_zipit.tracing.solve import EXPECTED, FIXED, Local, Trace
from hf_zipit.tracing.tracer import outputs, random_copy


@torch.no_grad()
def difference(model: nn.Module, traced: Trace, pixels: Tensor, seed: int = 0) -> tuple[float, float]:
    """How far the logits move, and how large they are, when all traced units are permuted at random (float64).

    >>> difference(model, trace(model, pixels), pixels)  # doctest: +SKIP
    (4e-15, 1.3)
    """
    net = random_copy(model, seed).double()
    moved = copy.deepcopy(net)
    moved.load_state_dict(_permuted(net.state_dict(), traced, random_order(traced, seed)))
    image = torch.randn(2, *pixels.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    pairs = list(zip(outputs(net(image)), outputs(moved(image)), strict=True))
    return max(float((a - b).abs().max()) for a, b in pairs), max(float(a.abs().max()) for a, _ in pairs)


def random_order(traced: Trace, seed: int) -> dict[int, int]:
    """Which unit takes the place of each: units inside their cells, cells with all cells of their axis."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, list[int]] = {}
    out = {}
    for space in traced.spaces:
        order = [0]
        if space.axis is not None:
            new = torch.randperm(len(space.cells), generator=generator).tolist()
            order = orders.setdefault(space.axis, new)
        for cell, source in zip(space.cells, order, strict=True):
            units = space.cells[source]
            shuffled = torch.randperm(len(units), generator=generator).tolist()
            out.update({unit: units[i] for unit, i in zip(cell, shuffled, strict=True)})
    return out


def _permuted(state: dict[str, Tensor], traced: Trace, order: dict[int, int]) -> dict[str, Tensor]:
    new = dict(state)
    for (name, axis), units in traced.axes.items():
        if name in new:
            new[name] = new[name].index_select(axis, _index(units, order))
    for name, local in traced.local.items():
        if local.units is not None:
            new[name] = _permuted_inside(new[name], local, _index(local.units, order))
    return new


def _index(units: Tensor, order: dict[int, int]) -> Tensor:
    """Where each place of an axis takes its slice from; the copies of a unit move side by side."""
    places = defaultdict(list)
    for index, unit in enumerate(units.tolist()):
        places[unit].append(index)
    out = list(range(len(units)))
    for unit, mine in places.items():
        for to, source in zip(mine, places[order.get(unit, unit)], strict=True):
            out[to] = source
    return torch.tensor(out)


def _permuted_inside(weight: Tensor, local: Local, index: Tensor) -> Tensor:
    """The input axis of a grouped convolution, after its rows have moved."""
    inner = weight.shape[1]
    places = (index % inner).view(local.groups, inner).repeat_interleave(len(weight) // local.groups, 0)
    return weight.gather(1, places.view(*places.shape, *[1] * (weight.ndim - 2)).expand_as(weight))


def same_grouping(traced: Trace, binding: Binding) -> tuple[str, ...]:
    """Check that a trace and a spec agree on which places of all parameters are one unit, are fixed, and move as one.

    Axes the forward pass cannot speak about (unused parameters) are left out, and so are places that the trace holds
    fixed: whether the spec may free them is for the check of the function. Returns what held those.

    Raises:
        SpecError: they differ; the message names the first parameter.
    """
    file, declared = binding.spec.file, _declared(traced, binding)
    to_spec: dict[int, tuple[str, int]] = {}
    to_trace: dict[tuple[str, int], int] = {}
    unseen: dict[str, None] = {}
    for (name, axis), places in declared.items():
        why = traced.frozen.get((name, axis), "")
        if why in ("used nowhere else", "never used"):
            continue
        for unit, place in zip(traced.axes[name, axis].tolist(), places, strict=True):
            where = f"{file}: {name} axis {axis}"
            if unit == FIXED:
                unseen.update({why: None} if place else {})
                continue
            if place is None:
                raise SpecError(f"{where} is fixed in the spec, but free in the model")
            if to_spec.setdefault(unit, place) != place:
                raise SpecError(f"{where}: spaces '{place[0]}' and '{to_spec[unit][0]}' hold the same unit")
            if to_trace.setdefault(place, unit) != unit:
                raise SpecError(f"{where}: space '{place[0]}' ties units that the model does not tie")
    together = {frozenset(to_spec[u] for u in cells) for cells in _together(traced) if set(cells) <= set(to_spec)}
    stated = {units.intersection(to_trace) for units in _groups(binding)} - {frozenset()}
    for missing in stated ^ together:
        found = sorted({space for space, _ in missing})
        raise SpecError(f"{file}: the groups of {', '.join(map(repr, found))} are not those of the model")
    return tuple(unseen)


def _declared(traced: Trace, binding: Binding) -> dict[Axis, list[tuple[str, int] | None]]:
    """(space, unit) at every place that the trace knows, `None` where the spec fixes it."""
    out: dict[Axis, list[tuple[str, int] | None]] = {key: [None] * len(v) for key, v in traced.axes.items()}
    for row in binding.table:
        if row.local or (row.parameter, row.axis) not in out:
            continue
        units = torch.arange(row.length // (row.before * row.after))
        units = units.repeat_interleave(row.after).repeat(row.before)
        mine = out[row.parameter, row.axis]
        mine[row.offset : row.offset + row.length] = [(row.space, int(u)) for u in units]
    return out


def _together(traced: Trace) -> Iterable[list[int]]:
    """The units of each group of cells that move together."""
    found: dict[tuple[str | None, int], list[int]] = defaultdict(list)
    for space in traced.spaces:
        for number, cell in enumerate(space.cells if space.axis else ()):
            found[space.axis, number].extend(cell)
    return found.values()


def _groups(binding: Binding) -> Iterable[frozenset[tuple[str, int]]]:
    found = defaultdict(set)
    for name, space in binding.spaces.items():
        inner = space.size // space.groups
        for unit in range(space.size if space.group_axis else 0):
            found[space.group_axis, unit // inner].add((name, unit))
    return [frozenset(units) for units in found.values()]


def tally(traced: Trace) -> Counter[str]:
    """How many places are held back by each reason, most first, but for those that no model can move.

    >>> tally(trace(model, pixels)).most_common(1)  # doctest: +SKIP
    [('convolution in conv1', 3)]
    """
    out: Counter[str] = Counter()
    for axis, why in traced.frozen.items():
        if why in EXPECTED:
            continue
        out[why] += int((traced.axes[axis] == FIXED).sum())
    return out

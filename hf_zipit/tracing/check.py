"""Check a trace: permuting its units preserves the logits, and it groups parameters like a declared spec."""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.spaces import Binding
from hf_zipit.tracing.groups import Axis
from hf_zipit.tracing.solve import EXPECTED, FIXED_UNIT, Local, Trace
from hf_zipit.tracing.tracer import outputs, random_copy


@torch.no_grad()
def difference(model: nn.Module, traced: Trace, pixels: Tensor, seed: int = 0) -> tuple[float, float]:
    """The largest change of a logit when all traced units are permuted at random, and the largest logit (float64).

    Args:
        model: The model; it is not changed.
        traced: Its trace.
        pixels: One image, (1, channels, height, width); only its shape is used.
        seed: Seed of the parameters, the images and the permutation.

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
    """A random permutation: unit -> the unit that replaces it. Cells move with the other cells of their axis."""
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
    """The old index for every index of a permuted axis. All copies of a unit move together."""
    indices = defaultdict(list)
    for index, unit in enumerate(units.tolist()):
        indices[unit].append(index)
    out = list(range(len(units)))
    for unit, mine in indices.items():
        for to, source in zip(mine, indices[order.get(unit, unit)], strict=True):
            out[to] = source
    return torch.tensor(out)


def _permuted_inside(weight: Tensor, local: Local, index: Tensor) -> Tensor:
    """Permute the input axis of a grouped convolution whose output axis is permuted already."""
    inner = weight.shape[1]
    inside = (index % inner).view(local.groups, inner).repeat_interleave(len(weight) // local.groups, 0)
    return weight.gather(1, inside.view(*inside.shape, *[1] * (weight.ndim - 2)).expand_as(weight))


def same_grouping(traced: Trace, binding: Binding) -> tuple[str, ...]:
    """Check that a trace and a spec agree: which indices of parameters are one unit, and which groups move together.

    Parameters that the forward pass does not read are not compared. Neither are axes that the spec says it holds, nor
    indices that the trace holds fixed but the spec leaves free: the check of the function decides about the latter.

    Returns:
        The operations that hold such indices fixed.

    Raises:
        SpecError: they differ; the message names the first parameter.
    """
    file = binding.spec.file
    declared = _declared(traced, binding)
    to_spec: dict[int, tuple[str, int]] = {}
    to_trace: dict[tuple[str, int], int] = {}
    unseen: dict[str, None] = {}
    for (name, axis), stated in declared.items():
        why = traced.frozen.get((name, axis), "")
        if why in ("used nowhere else", "never used") or (name, axis) in binding.held:
            continue
        for unit, twin in zip(traced.axes[name, axis].tolist(), stated, strict=True):
            where = f"{file}: {name} axis {axis}"
            if unit == FIXED_UNIT:
                unseen.update({why: None} if twin else {})
                continue
            if twin is None:
                raise SpecError(
                    f"{where} is fixed in the spec, but free in the model: name its space, or write 'held' for it"
                )
            if to_spec.setdefault(unit, twin) != twin:
                raise SpecError(f"{where}: spaces '{twin[0]}' and '{to_spec[unit][0]}' hold the same unit")
            if to_trace.setdefault(twin, unit) != unit:
                raise SpecError(f"{where}: space '{twin[0]}' ties units that the model does not tie")
    together = {frozenset(to_spec[u] for u in cells if u in to_spec) for cells in _together(traced)}
    grouped = {units.intersection(to_trace) for units in _groups(binding)}
    for missing in (units for units in grouped ^ together if len(units) > 1):  # one unit is no group
        found = sorted({space for space, _ in missing})
        raise SpecError(f"{file}: the groups of {', '.join(map(repr, found))} are not those of the model")
    return tuple(unseen)


def fixed_share(traced: Trace, binding: Binding) -> float:
    """The share of all indices of parameter axes that an operation of the model or the spec itself fixes.

    Without the indices that are fixed in any model, such as those of the classes.

    >>> fixed_share(trace(model, pixels), bind(parse(describe(model, pixels, "mine")), model))  # doctest: +SKIP
    0.017
    """
    fixed = 0
    for key, stated in _declared(traced, binding).items():
        expected = traced.frozen.get(key, "") in EXPECTED
        units = traced.axes[key].tolist()
        met: dict[object, set[int]] = defaultdict(set)  # a group whose units are held stands for several units
        for unit, twin in zip(units, stated, strict=True):
            met[twin].add(unit)
        for unit, twin in zip(units, stated, strict=True):
            fixed += (unit != FIXED_UNIT or not expected) if twin is None else len(met[twin]) > 1
    return fixed / max(sum(map(len, traced.axes.values())), 1)


def _declared(traced: Trace, binding: Binding) -> dict[Axis, list[tuple[str, int] | None]]:
    """The spec's (space, unit) at every index of every traced axis; `None` where the spec holds it fixed."""
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
    """The units of all cells that move together, for each group; one group alone has nothing to move past."""
    found: dict[tuple[str | None, int], list[int]] = defaultdict(list)
    for space in traced.spaces:
        for number, cell in enumerate(space.cells if space.axis and len(space.cells) > 1 else ()):
            found[space.axis, number].extend(cell)
    return found.values()


def _groups(binding: Binding) -> Iterable[frozenset[tuple[str, int]]]:
    found = defaultdict(set)
    for name, space in binding.spaces.items():
        inner = space.size // space.groups
        for unit in range(space.size if space.group_axis and space.groups > 1 else 0):
            found[space.group_axis, unit // inner].add((name, unit))
    return [frozenset(units) for units in found.values()]


def tally(traced: Trace) -> Counter[str]:
    """The number of indices that each operation holds fixed, without those that are fixed in any model.

    >>> tally(trace(model, pixels)).most_common(1)  # doctest: +SKIP
    [('convolution in conv1', 3)]
    """
    out: Counter[str] = Counter()
    for axis, why in traced.frozen.items():
        if why in EXPECTED:
            continue
        out[why] += int((traced.axes[axis] == FIXED_UNIT).sum())
    return out

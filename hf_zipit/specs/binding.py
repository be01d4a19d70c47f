"""Bind a spec to a live model: expand it, then work out sizes, rows, spaces, steps and cuts."""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from hf_zipit.errors import SpecError
from hf_zipit.models.rerun import PIXELS
from hf_zipit.models.resume import around
from hf_zipit.specs.grammar import Line, ProbeLine, Spec
from hf_zipit.specs.names import Names
from hf_zipit.specs.parser import pattern
from hf_zipit.specs.spaces import Binding, FeatureSpace, Probe, Row
from hf_zipit.specs.wired import OPEN, Wired
from hf_zipit.specs.wiring import expand


def bind(spec: Spec, model: nn.Module) -> Binding:
    """Bind a spec to a model, so that every floating tensor of the state dict is in exactly one line.

    Raises:
        SpecError: a parameter is in no line or in two, an axis has the wrong width, a space has no probe, or a space
            is divided into groups in two ways.

    >>> bind(read("timm_resnet.yaml"), timm.create_model("resnet18")).spaces["stem"].size  # doctest: +SKIP
    64
    """
    wired = expand(spec, model)
    sizes = {**wired.group_counts, **_sizes(wired)}
    table = tuple(_with_tiles(row, sizes, wired) for row in wired.rows)
    _check_one_written_axis(table, spec)
    spaces = _spaces(wired, sizes, table)
    _check_all_written(table, spaces, wired)
    owns, arguments = _steps(spec, wired, tuple(model.state_dict()))
    return Binding(
        spec=spec,
        spaces=spaces,
        table=table,
        owns=owns,
        arguments=arguments,
        after=_after(spec, owns, wired, spaces),
        classifier=tuple(name for name, line in wired.claimed.items() if "classes" in line.names()),
        unmatched=tuple(line for line in _lines(spec) if line not in wired.used),
        held=wired.held,
    )


def _sizes(wired: Wired) -> dict[str, int]:
    """The number of units of every space, from its rows without tiles, which must agree."""
    found: dict[str, tuple[int, Row]] = {}
    for row in wired.rows:
        if OPEN in (row.before, row.after) or row.local:
            continue
        size, first = found.setdefault(row.space, (row.length, row))
        if size != row.length:
            raise SpecError(
                f"{wired.file}:{wired.claimed[row.parameter].number}: {row.parameter} axis {row.axis} is "
                f"{row.length} wide, but space '{row.space}' has {size} units ({first.parameter})"
            )
    return {space: size for space, (size, _) in found.items()}


def _with_tiles(row: Row, sizes: dict[str, int], wired: Wired) -> Row:
    """A row with its tile counts."""
    if row.space not in sizes:
        raise SpecError(f"{wired.file}: no line gives the size of space '{row.space}' ({row.parameter})")
    size = sizes[row.space]
    tiles, rest = divmod(row.length, size)
    if rest and OPEN in (row.before, row.after):
        raise SpecError(f"{wired.file}: {row.parameter} axis {row.axis} is no multiple of {size} ('{row.space}')")
    before, after = (tiles if count == OPEN else 1 for count in (row.before, row.after))
    return replace(row, before=before, after=after)


def _check_one_written_axis(table: tuple[Row, ...], spec: Spec) -> None:
    """Refuse spaces on two axes of a parameter: their average would need a count for each pair of units."""
    axes: dict[str, int] = {}
    for row in table:
        if row.role != "read" and axes.setdefault(row.parameter, row.axis) != row.axis:
            raise SpecError(f"{spec.file}: {row.parameter} carries spaces on two axes")


def _check_all_written(table: tuple[Row, ...], spaces: dict[str, FeatureSpace], wired: Wired) -> None:
    """Refuse a space that is only read: its units come from nowhere."""
    for row in table:
        if row.space not in spaces:
            raise SpecError(
                f"{wired.file}:{wired.claimed[row.parameter].number}: {row.parameter} reads space '{row.space}', which "
                "nothing writes"
            )


def _spaces(wired: Wired, sizes: dict[str, int], table: tuple[Row, ...]) -> dict[str, FeatureSpace]:
    """The spaces that some parameter writes or carries, in the order of the state dict.

    Then come group axes that are only read: their entries come with the groups of the spaces that they divide.
    """
    order = {name: i for i, name in enumerate(wired.parameters)}
    written = sorted((row for row in table if row.role != "read"), key=lambda row: order[row.parameter])
    names = dict.fromkeys(row.space for row in written)
    divided = {grouping.axis for grouping in wired.groupings if grouping.space in names}
    names |= dict.fromkeys(row.space for row in table if row.space in divided)
    spaces = {name: _space(name, sizes[name], wired, table) for name in names}
    axes = _united_axes(wired, spaces)
    for name, space in spaces.items():
        if space.group_axis:
            spaces[name] = replace(space, group_axis=axes.find(space.group_axis))
    return spaces


def _space(name: str, size: int, wired: Wired, table: tuple[Row, ...]) -> FeatureSpace:
    groupings = [grouping for grouping in wired.groupings if grouping.space == name]
    if len({grouping.count for grouping in groupings}) > 1:
        found = ", ".join(f"{grouping.count} ({grouping.axis})" for grouping in groupings)
        raise SpecError(f"{wired.file}: space '{name}' has two group structures: {found}")
    groups, axis = (groupings[0].count, groupings[0].axis) if groupings else (1, None)
    shown = [probe for space, probe in wired.probes if space == name]
    probes = tuple(dict.fromkeys(part for probe in shown for part in _parts(probe, name, table)))
    is_axis = axis is not None and groups == size
    if not probes and not is_axis:
        raise SpecError(f"{wired.file}: space '{name}' has no probe: add it under probe:")
    read = any(row.space == name and row.role == "read" for row in table)
    return FeatureSpace(name, size, probes, groups, axis, one_to_one=not read or name in wired.normed)


def _parts(probe: Probe, space: str, table: tuple[Row, ...]) -> list[Probe]:
    """The parts of a probed tensor that show a space: one, or several beside other spaces (a fused projection)."""
    role = "read" if probe.side == "in" else "write"
    mine = [row for row in table if row.parameter == f"{probe.module}.weight" and row.role in (role, "carry")]
    return [replace(probe, start=row.offset) for row in mine if row.space == space and not row.local] or [probe]


def _united_axes(wired: Wired, spaces: dict[str, FeatureSpace]) -> Names:
    """The names of group axes; all axes that divide one space are the same axis."""
    axes = Names()
    for grouping in wired.groupings:
        axes.add(grouping.axis)
        own = spaces[grouping.space].group_axis if grouping.space in spaces else None
        if own is not None:
            axes.union(own, grouping.axis)
    return axes


def _lines(spec: Spec) -> list[Line | ProbeLine]:
    """Every line of a spec that names a module or a parameter."""
    found: list[Line | ProbeLine] = [*spec.wire, *spec.probe]
    for block in spec.blocks:
        found += [*block.wire, *block.probe]
    return found


def _steps(
    spec: Spec, wired: Wired, state: tuple[str, ...]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The steps of the model in order: what each runs (modules and parameters), and its arguments, if any.

    Steps whose modules the model lacks are left out. `state` holds the names of all tensors of the model.
    """
    owns: dict[str, tuple[str, ...]] = {}
    arguments: dict[str, tuple[str, ...]] = {}
    known = {*wired.modules, *state}
    previous = PIXELS
    for alternatives in spec.chain:
        first = alternatives[0]
        if ":" in first.name:  # a method or a function, which has no alternatives
            present = known.intersection(first.owns)
            found = {first.name: first} if present or not first.owns else {}
        else:
            pairs = ((path, step) for path in wired.modules if path for step in alternatives)
            found = {path: step for path, step in pairs if pattern(step.name).fullmatch(path)}
        for name, step in found.items():
            mine = () if ":" in name else (name,)
            owns[name] = (*(owned for owned in step.owns if owned in known), *mine)
            given = (*(owns[name] if name.startswith("op:") else ()), *step.arguments)
            if spec.interrupts:
                given = (f"after={previous}",)
                previous = name
            if given:
                arguments[name] = given
    if spec.interrupts:
        rest = next(reversed(owns))
        owns[rest] = (*owns[rest], *_unclaimed(owns.values(), wired, state))
    return owns, arguments


def _unclaimed(owned: Iterable[tuple[str, ...]], wired: Wired, state: tuple[str, ...]) -> list[str]:
    """The modules and tensors that no step owns, each named by the outermost module of which this holds."""
    claimed = {name for names in owned for name in names}
    free = {name for name in state if claimed.isdisjoint([*around(name), name])}
    mixed = {path for name in {*state, *claimed} - free for path in around(name)}  # they hold something that is owned
    tops = (next((path for path in around(name) if path not in mixed), name) for name in state if name in free)
    return list(dict.fromkeys(tops))


def _after(
    spec: Spec, owns: dict[str, tuple[str, ...]], wired: Wired, spaces: dict[str, FeatureSpace]
) -> dict[str, str | None]:
    """The space of the tensor that is alive after each step; `None` where it has none or a fixed one.

    It is the one that the step says it is, else the one that its last module writes. A part of a model's own forward
    must say it unless a line or a block describes its module.
    """
    stated = {step.name: step.space for steps in spec.chain for step in steps}
    after: dict[str, str | None] = {}
    current: str | None = None
    for step, mine in owns.items():
        prefixes = tuple(f"{name}." for name in mine)
        inside = [path for path in wired.modules if path in wired.written and f"{path}.".startswith(prefixes)]
        if stated.get(step):
            current = wired.stated[str(stated[step])]
        elif spec.interrupts:
            current = wired.written.get(step)
        elif inside:
            current = wired.written[step if step in wired.written else inside[-1]]
        after[step] = current if current in spaces else None
    return after

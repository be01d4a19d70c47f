"""Binding: spec + live model -> `Binding`. The one place where a spec meets a model."""

from dataclasses import replace

from torch import nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.grammar import Block, Line, ProbeLine, Spec
from hf_zipit.specs.names import Scope
from hf_zipit.specs.parser import pattern
from hf_zipit.specs.spaces import Binding, FeatureSpace, Probe, Row
from hf_zipit.specs.wiring import OPEN, Wiring


def bind(spec: Spec, model: nn.Module) -> Binding:
    """Expand a spec against a model; every floating tensor of its state dict ends up in exactly one line.

    Raises:
        SpecError: a parameter is in no line or in two, an axis has the wrong width, a space has no probe, or two
            group structures meet in one space.

    >>> bind(read("timm_resnet.yaml"), timm.create_model("resnet18")).spaces["stem"].size  # doctest: +SKIP
    64
    """
    wiring = Wiring(spec.file, model, spec.channels_last)
    _wire(spec, wiring)
    missing = sorted(set(wiring.tensors) - set(wiring.claimed))
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SpecError(
            f"{spec.file} does not cover {', '.join(missing[:5])}{more} of {type(model).__name__}: "
            "add a line for each, or use a spec for this variant"
        )
    wiring.settle()
    sizes = {**{wiring.names.find(n): k for n, k in wiring.sizes.items() if n in wiring.names.parent}, **_sizes(wiring)}
    table = tuple(_resolved(row, sizes, wiring) for row in wiring.rows)
    _one_write(table, spec)
    place = {name: i for i, name in enumerate(wiring.tensors)}
    written = sorted((row for row in table if row.role != "read"), key=lambda row: place[row.parameter])
    spaces = {name: _space(name, sizes[name], wiring, table) for name in dict.fromkeys(row.space for row in written)}
    for name, space in spaces.items():  # group axes may have been united after the space was made
        if space.group_axis:
            spaces[name] = replace(space, group_axis=wiring.axes.find(space.group_axis))
    owns, arguments = _steps(spec, wiring)
    after = _after(owns, wiring, spaces)
    classifier = tuple(name for name, line in wiring.claimed.items() if "classes" in line.names())
    unmatched = tuple(line for line in _lines(spec) if line not in wiring.used)
    return Binding(spec, spaces, table, owns, arguments, after, classifier, unmatched)


def _lines(spec: Spec) -> list[Line | ProbeLine]:
    """Every line of a spec that names a module or a parameter."""
    found: list[Line | ProbeLine] = [*spec.wire, *spec.probe]
    for block in spec.blocks:
        found += [*block.wire, *block.probe]
    return found


def _wire(spec: Spec, wiring: Wiring) -> None:
    """Expand the top-level lines, then every block in registration order along the stream."""
    shared = frozenset(name for line in spec.wire for name in line.names())
    wiring.names.add(spec.stream)
    blocks = [
        (entry, path)
        for path in wiring.modules
        for entry in spec.blocks
        if any(pattern(p).fullmatch(path) for p in entry.each) and wiring.has_parameters(path)
        if entry.when is None or entry.when in {c.__name__ for c in type(wiring.modules[path]).__mro__}
    ]
    top = Scope("", "", shared)
    wiring.sizes.update({name: _attribute(wiring, "", sources) for name, sources in spec.sizes.items()})
    wiring.expand(spec.wire, top, {line.target for line in spec.wire} | {path for _, path in blocks})
    wiring.observe(spec.probe, top)
    stream = spec.stream
    for entry, path in blocks:
        stream = _block(entry, Scope(path, stream, shared), wiring)
    if "last" in shared:
        wiring.names.rank["last"] = (2, 0)
        wiring.names.union(stream, "last")


def _block(entry: Block, scope: Scope, wiring: Wiring) -> str:
    """Expand one block; returns the stream that leaves it."""
    leaves = any("out" in line.names() for line in entry.wire)
    if leaves:
        wiring.names.add(scope("out"))
    for name, sources in entry.sizes.items():
        wiring.sizes[scope(name)] = _attribute(wiring, scope.block, sources)
    wiring.expand(entry.wire, scope, {scope.path(line.target) for line in entry.wire})
    for same in entry.same:
        if same.unless is None or not wiring.has_parameters(scope.path(same.unless)):
            wiring.names.union(scope(same.left), scope(same.right))
    wiring.observe(entry.probe, scope)
    stream = scope("out") if leaves else scope.stream
    wiring.written[scope.block] = stream
    return stream


def _attribute(wiring: Wiring, path: str, sources: tuple[str, ...]) -> int:
    for source in sources:
        if source.isdigit():
            return int(source)
        value: object = wiring.modules[path]
        for part in source.split("."):
            value = getattr(value, part, None)
        if isinstance(value, int):
            return value
    raise SpecError(f"{wiring.file}: sizes: {path} has none of the integer attributes {', '.join(sources)}")


def _sizes(wiring: Wiring) -> dict[str, int]:
    """The number of units of every space, from its plain rows; they must agree."""
    found: dict[str, tuple[int, Row]] = {}
    for row in wiring.rows:
        if OPEN in (row.before, row.after) or row.local:
            continue
        space = wiring.names.find(row.space)
        size, first = found.setdefault(space, (row.length, row))
        if size != row.length:
            raise SpecError(
                f"{wiring.file}:{wiring.claimed[row.parameter].number}: {row.parameter} axis {row.axis} is "
                f"{row.length} wide, but space '{space}' has {size} units ({first.parameter})"
            )
    return {space: size for space, (size, _) in found.items()}


def _resolved(row: Row, sizes: dict[str, int], wiring: Wiring) -> Row:
    """A row with the representative of its space and its tile counts."""
    space = wiring.names.find(row.space)
    if space not in sizes:
        raise SpecError(f"{wiring.file}: no line gives the size of space '{space}' ({row.parameter})")
    tiles, rest = divmod(row.length, sizes[space])
    if rest and OPEN in (row.before, row.after):
        raise SpecError(f"{wiring.file}: {row.parameter} axis {row.axis} is no multiple of {sizes[space]} ('{space}')")
    before, after = (tiles if count == OPEN else 1 for count in (row.before, row.after))
    return replace(row, space=space, before=before, after=after)


def _one_write(table: tuple[Row, ...], spec: Spec) -> None:
    """Averaging is defined along one axis of a parameter; two would need counts of pairs of units."""
    axes: dict[str, int] = {}
    for row in table:
        if row.role != "read" and axes.setdefault(row.parameter, row.axis) != row.axis:
            raise SpecError(f"{spec.file}: {row.parameter} carries spaces on two axes")


def _space(name: str, size: int, wiring: Wiring, table: tuple[Row, ...]) -> FeatureSpace:
    find = wiring.names.find
    mine = [(groups, axis) for space, groups, axis in wiring.grouped if find(wiring.names.add(space)) == name]
    if len({groups for groups, _ in mine}) > 1:
        found = ", ".join(f"{groups} ({axis})" for groups, axis in mine)
        raise SpecError(f"{wiring.file}: space '{name}' has two group structures: {found}")
    for _, axis in mine[1:]:
        wiring.axes.union(mine[0][1], axis)
    shown = [probe for space, probe in wiring.probes if find(space) == name]
    probes = tuple(dict.fromkeys(part for probe in shown for part in _parts(probe, name, table)))
    if not probes and not (mine and mine[0][0] == size):
        raise SpecError(f"{wiring.file}: space '{name}' has no probe: add it under probe:")
    read = any(row.space == name and row.role == "read" for row in table)
    single = not read or any(find(wiring.names.add(space)) == name for space in wiring.normed)
    if mine:
        return FeatureSpace(name, size, probes, *mine[0], one_to_one=single)
    return FeatureSpace(name, size, probes, one_to_one=single)


def _parts(probe: Probe, space: str, table: tuple[Row, ...]) -> list[Probe]:
    """Where the space lies in what a probe shows: once, or several times beside others (a fused projection)."""
    role = "read" if probe.side == "in" else "write"
    mine = [row for row in table if row.parameter == f"{probe.module}.weight" and row.role in (role, "carry")]
    return [replace(probe, start=row.offset) for row in mine if row.space == space and not row.local] or [probe]


def _steps(spec: Spec, wiring: Wiring) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The steps of the model in order, with the modules and parameters each runs and what else it is given.

    Steps whose modules the model lacks are left out.
    """
    owns: dict[str, tuple[str, ...]] = {}
    arguments: dict[str, tuple[str, ...]] = {}
    for steps in spec.chain:
        if ":" in steps[0].name:
            (step,) = steps
            found = {step.name: step} if not step.owns or _present(step.owns, wiring) else {}
        else:
            paths = [(path, step) for path in wiring.modules for step in steps if pattern(step.name).fullmatch(path)]
            found = {path: step for path, step in paths if path}
        for name, step in found.items():
            owns[name] = _present(step.owns, wiring) if ":" in name else (name,)
            given = (*(owns[name] if name.startswith("op:") else ()), *step.arguments)
            arguments.update({name: given} if given else {})
    return owns, arguments


def _present(names: tuple[str, ...], wiring: Wiring) -> tuple[str, ...]:
    return tuple(name for name in names if name in wiring.modules or name in wiring.tensors)


def _after(owns: dict[str, tuple[str, ...]], wiring: Wiring, spaces: dict[str, FeatureSpace]) -> dict[str, str | None]:
    """The space that is alive after each step."""
    after: dict[str, str | None] = {}
    current: str | None = None
    for step, mine in owns.items():
        prefixes = tuple(f"{name}." for name in mine)
        inside = [path for path in wiring.modules if path in wiring.written and f"{path}.".startswith(prefixes)]
        if inside:
            space = wiring.written[step if step in wiring.written else inside[-1]]
            current = wiring.names.find(wiring.names.add(space)) if space else None
        after[step] = current if current in spaces else None
    return after

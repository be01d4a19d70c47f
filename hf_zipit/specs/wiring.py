"""Expand a spec against a model: which parameters read, write and carry which space.

A line names a module, and the type of the module says the rest: a bias follows the output, a norm carries its space,
grouped convolutions and group norms divide theirs into groups. The state of an expansion is private to this module and
`rows`; the result is frozen.
"""

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.grammar import FIXED_AXES, Block, Expression, Line, ProbeLine, Spec
from hf_zipit.specs.names import Scope
from hf_zipit.specs.parser import pattern
from hf_zipit.specs.rows import Origin, RowBuilder
from hf_zipit.specs.spaces import Probe
from hf_zipit.specs.wired import Grouping, Wired
from hf_zipit.text import some


def expand(spec: Spec, model: nn.Module) -> Wired:
    """Expand the lines of a spec against a model.

    Raises:
        SpecError: a parameter is in no line or in two, or a line does not fit its module.
    """
    expansion = _Expansion(spec.file, model, spec.channels_last)
    expansion.spec(spec)
    missing = sorted(set(expansion.tensors) - set(expansion.table.claimed))
    if missing:
        raise SpecError(
            f"{spec.file} does not cover {some(missing, most=5)} of {type(model).__name__}: "
            "add a line for each, or use a spec for this variant"
        )
    expansion.table.divide_concatenations()
    return expansion.wired(step.space for steps in spec.chain for step in steps if step.space is not None)


class _Expansion:
    """Expands lines one after the other; the attributes are those of `Wired`."""

    def __init__(self, file: str, model: nn.Module, channels_last: bool) -> None:
        self.file = file
        self.channels_last = channels_last
        self.modules = dict(model.named_modules())
        self.tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point() and v.ndim}
        self.table = RowBuilder(self.tensors)
        self.probes: list[tuple[str, Probe]] = []
        self.probe_lines: set[ProbeLine] = set()
        self.normed: set[str] = set()
        self.written: dict[str, str | None] = {}

    def spec(self, spec: Spec) -> None:
        """Expand the top-level lines, then every block in registration order along the stream."""
        shared = frozenset(name for line in spec.wire for name in line.names())
        top = Scope("", "", shared)
        blocks = self._blocks(spec)
        explicit = {line.target for line in spec.wire} | {path for _, path in blocks}
        self.table.names.add(spec.stream)
        self.table.group_counts.update({name: self._attribute("", sources) for name, sources in spec.sizes.items()})
        self._expand(spec.wire, top, explicit)
        self._observe(spec.probe, top)
        stream = spec.stream
        for block, path in blocks:
            stream = self._block(block, Scope(path, stream, shared))
        if "last" in shared:
            self.table.names.demote("last")
            self.table.names.union(stream, "last")

    def wired(self, stated: Iterable[str]) -> Wired:
        """The result, in which every name of a space is its representative; `stated` are the names in the chain."""
        find = self.table.names.find
        counts = {find(axis): count for axis, count in self.table.group_counts.items() if axis in self.table.names}
        return Wired(
            file=self.file,
            modules=tuple(self.modules),
            parameters=tuple(self.tensors),
            rows=tuple(replace(row, space=find(row.space)) for row in self.table.rows),
            group_counts=counts,
            claimed=dict(self.table.claimed),
            probes=tuple((find(space), probe) for space, probe in self.probes),
            groupings=tuple(replace(grouping, space=find(grouping.space)) for grouping in self.table.groupings),
            normed=frozenset(map(find, self.normed)),
            held=frozenset(self.table.held),
            written={path: space and find(space) for path, space in self.written.items()},
            stated={name: find(name) if name in self.table.names else None for name in stated},
            used=frozenset(self.table.claimed.values()) | self.probe_lines,
        )

    def _blocks(self, spec: Spec) -> list[tuple[Block, str]]:
        """Each block entry of the spec with a module that it describes, in registration order."""
        return [
            (block, path)
            for path in self.modules
            for block in spec.blocks
            if any(pattern(each).fullmatch(path) for each in block.each) and self._has_parameters(path)
            if block.when is None or block.when in {c.__name__ for c in type(self.modules[path]).__mro__}
        ]

    def _block(self, block: Block, scope: Scope) -> str:
        """Expand one block, and return the stream that leaves it."""
        makes_stream = any("out" in line.names() for line in block.wire)
        if makes_stream:
            self.table.names.add(scope("out"))
        for name, sources in block.sizes.items():
            self.table.group_counts[scope(name)] = self._attribute(scope.block, sources)
        self._expand(block.wire, scope, {scope.path(line.target) for line in block.wire})
        for same in block.same:
            without = same.unless is None or not self._has_parameters(scope.path(same.unless))
            if without and (same.only is None or self._value(scope.block, same.only)):
                self.table.names.union(scope(same.left), scope(same.right))
        self._observe(block.probe, scope)
        stream = scope("out") if makes_stream else scope.stream
        self.written[scope.block] = stream
        return stream

    def _attribute(self, path: str, sources: tuple[str, ...]) -> int:
        """The first of `sources` that is an integer, or an integer attribute of a module."""
        for source in sources:
            if source.isascii() and source.isdigit():
                return int(source)
            value = self._value(path, source)
            if isinstance(value, int):
                return value
        raise SpecError(f"{self.file}: sizes: {path} has none of the integer attributes {', '.join(sources)}")

    def _value(self, path: str, attribute: str) -> object:
        """An attribute of a module; `None` if it has none of that name."""
        value: object = self.modules[path]
        for part in attribute.split("."):
            value = getattr(value, part, None)
        return value

    def _has_parameters(self, path: str) -> bool:
        return path in self.modules and bool(self.modules[path].state_dict())

    def _expand(self, lines: tuple[Line, ...], scope: Scope, explicit: set[str]) -> None:
        """Expand lines. One whose target the model lacks is skipped; the coverage check makes that safe.

        Paths in `explicit` have lines of their own, which take precedence over a line for a module above them.
        """
        for line in lines:
            origin = Origin(self.file, line, scope)
            path = scope.path(line.target)
            if path in self.tensors and line.writes:
                self._matrix(origin, path)
            elif path in self.tensors:
                self._bare(origin, path)
            elif line.axes and path in self.modules:
                raise origin.error(f"{path} is a module: a list of axes is for a parameter, such as {path}.weight")
            elif self._own(path):
                self._module(origin, path, line.reads, line.writes)
            elif path in self.modules and not any(p.startswith(path + ".") and p in self.modules for p in explicit):
                self._container(origin, path)

    def _observe(self, lines: tuple[ProbeLine, ...], scope: Scope) -> None:
        """Keep the probes whose module the model has."""
        for line in lines:
            path = scope.block if line.module == "block" else scope.path(line.module)
            if path not in self.modules or (scope.block and not self._has_parameters(path)):
                continue
            self.probe_lines.add(line)
            if scope(line.space) not in FIXED_AXES:
                last = self.channels_last or isinstance(self.modules[path], nn.Linear)
                self.probes.append((self.table.names.add(scope(line.space)), Probe(path, line.side, last)))

    def _bare(self, origin: Origin, name: str) -> None:
        """A parameter wired by itself: one expression per axis."""
        line = origin.line
        axes = line.axes or (line.reads,)
        if len(axes) != self.tensors[name].ndim:
            raise origin.error(f"{name} has {self.tensors[name].ndim} axes, the line describes {len(axes)}")
        self.table.claim(origin, name)
        for axis, expression in enumerate(axes):
            self.table.add(origin, name, axis, "carry", expression)

    def _matrix(self, origin: Origin, name: str) -> None:
        """A parameter used as the weight of a linear layer: axis 0 writes, axis 1 reads."""
        line, ndim = origin.line, self.tensors[name].ndim
        if ndim != 2:
            raise origin.error(f"{name} has {ndim} axes: '->' is for matrices, use a list")
        self.table.claim(origin, name)
        self.table.add(origin, name, 0, "write", line.writes)
        self.table.add(origin, name, 1, "read", line.reads)

    def _container(self, origin: Origin, path: str) -> None:
        """A module without parameters of its own: run through its leaves; a norm carries the space on its side."""
        side = origin.line.reads
        for name, child in self.modules[path].named_modules():
            leaf = f"{path}.{name}" if name else path
            if self._own(leaf):
                writes = origin.line.writes if _is_layer(child) else ()
                self._module(origin, leaf, side, writes)
                side = writes or side
        self.written[path] = origin.scope.single(side)

    def _module(self, origin: Origin, path: str, reads: Expression, writes: Expression) -> None:
        """A module with parameters of its own."""
        module = self.modules[path]
        if not writes:
            self._carrier(origin, path, reads)
        elif _is_layer(module):
            self._layer(origin, path, reads, writes)
        else:
            kind = type(module).__name__
            raise origin.error(f"{path} is a {kind}: '->' is for linear layers and convolutions")
        self.written[path] = origin.scope.single(writes or reads)

    def _own(self, path: str) -> list[str]:
        """The parameters and buffers of a module itself, without those of its children."""
        module = self.modules.get(path)
        found = () if module is None else (f"{path}.{n}" for n in (*module._parameters, *module._buffers))
        return [name for name in found if name in self.tensors]

    def _carrier(self, origin: Origin, path: str, space: Expression) -> None:
        """Norms, layer scales, depthwise convolutions: element-wise along their first axis."""
        module = self.modules[path]
        mixes = isinstance(module, nn.modules.conv._ConvNd) and module.groups < module.in_channels
        if mixes or isinstance(module, nn.Linear):
            kind = type(module).__name__
            raise origin.error(f"{path} is a {kind} that mixes its inputs: write 'reads -> writes'")
        for name in self._own(path):
            self.table.claim(origin, name)
            self.table.add(origin, name, 0, "carry", space)
        carried = origin.scope.single(space)
        if carried and _normalises_all(module):
            self.normed.add(carried)
        if carried and isinstance(module, nn.GroupNorm) and module.num_groups > 1:
            self.table.groupings.append(Grouping(carried, module.num_groups, f"{carried}#groups"))

    def _layer(self, origin: Origin, path: str, reads: Expression, writes: Expression) -> None:
        """Linear layers and convolutions: the output axis and the bias write, the input axis reads."""
        weight, bias = f"{path}.weight", f"{path}.bias"
        transposed = bool(getattr(self.modules[path], "transposed", False))
        groups = int(getattr(self.modules[path], "groups", 1))
        if transposed and groups > 1:
            raise origin.error(f"{path}: grouped transposed convolutions are not supported")
        self.table.claim(origin, weight)
        self.table.add(origin, weight, 1 if transposed else 0, "write", writes)
        for expression in (reads, writes) if groups > 1 else ():
            if space := origin.scope.single(expression):
                self.table.groupings.append(Grouping(space, groups, f"{path}#groups"))
        self.table.add(origin, weight, 0 if transposed else 1, "read", reads, local=groups > 1)
        if bias in self.tensors:
            self.table.claim(origin, bias)
            self.table.add(origin, bias, 0, "write", writes)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def _normalises_all(module: nn.Module) -> bool:
    """Whether a norm computes its statistics over all units: layer norm, RMS norm, group norm of one group."""
    one_group = isinstance(module, nn.GroupNorm) and module.num_groups == 1
    return one_group or isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__

"""Expanding spec lines against the modules of a model: who reads, writes and carries which space.

The module's type says the rest: biases follow the output, norms carry, grouped convolutions and GroupNorm group.
"""

from torch import nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.grammar import FIXED, Expression, Line, ProbeLine, Term
from hf_zipit.specs.names import Names, Scope
from hf_zipit.specs.spaces import Probe, Role, Row

OPEN = -1  # a tile count that is known once the size of its space is


class Wiring:
    """The raw table of one model, filled line by line; names are resolved afterwards."""

    def __init__(self, file: str, model: nn.Module, channels_last: bool = False) -> None:
        self.file, self.channels_last = file, channels_last
        self.modules = dict(model.named_modules())
        self.tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point() and v.ndim}
        self.names, self.axes = Names(), Names()
        self.rows: list[Row] = []
        self.claimed: dict[str, Line] = {}
        self.used: set[Line | ProbeLine] = set()
        self.grouped: list[tuple[str, int, str]] = []  # (space, groups, group axis)
        self.sizes: dict[str, int] = {}  # group axis -> number of groups, from `sizes:`
        self.normed: set[str] = set()  # spaces under a layer norm
        self.joined: list[tuple[Line, str, int, Role, Expression, Scope]] = []  # `a + b`, not yet cut
        self.probes: list[tuple[str, Probe]] = []
        self.written: dict[str, str | None] = {}  # module path -> space its output lives in
        self.line = Line("")

    def error(self, message: str) -> SpecError:
        """An error at the line being expanded."""
        return SpecError(f"{self.file}:{self.line.number} ({self.line.target}): {message}")

    def has_parameters(self, path: str) -> bool:
        """Whether there is such a module, with parameters in it."""
        return path in self.modules and bool(self.modules[path].state_dict())

    def expand(self, lines: tuple[Line, ...], scope: Scope, explicit: set[str]) -> None:
        """Expand lines; one whose target the model lacks is skipped, the coverage check keeps that safe.

        `explicit` holds the paths with lines of their own: they take precedence over a line for a module above them.
        """
        for line in lines:
            self.line, path = line, scope.path(line.target)
            if path in self.tensors and line.writes:
                self._matrix(line, path, scope)
            elif path in self.tensors:
                self._bare(line, path, scope)
            elif path in self.modules:
                self._module(line, path, scope, explicit)

    def observe(self, lines: tuple[ProbeLine, ...], scope: Scope) -> None:
        """Note the probes whose module the model has."""
        for line in lines:
            path = scope.block if line.module == "block" else scope.path(line.module)
            known = path in self.modules and (self.has_parameters(path) or not scope.block)
            self.used.update([line] if known else [])
            if known and scope(line.space) not in FIXED:
                last = self.channels_last or isinstance(self.modules[path], nn.Linear)
                self.probes.append((self.names.add(scope(line.space)), Probe(path, line.side, last)))

    def _bare(self, line: Line, name: str, scope: Scope) -> None:
        """A parameter named by itself: one expression per axis."""
        axes = line.axes or (line.reads,)
        if len(axes) != self.tensors[name].ndim:
            raise self.error(f"{name} has {self.tensors[name].ndim} axes, the line describes {len(axes)}")
        self._claim(name)
        for axis, expression in enumerate(axes):
            self._rows(name, axis, "carry", expression, scope)

    def _matrix(self, line: Line, name: str, scope: Scope) -> None:
        """A parameter used as the weight of a linear layer: axis 0 writes, axis 1 reads."""
        if self.tensors[name].ndim != 2:
            raise self.error(f"{name} has {self.tensors[name].ndim} axes: '->' is for matrices, use a list")
        self._claim(name)
        self._rows(name, 0, "write", line.writes, scope)
        self._rows(name, 1, "read", line.reads, scope)

    def _module(self, line: Line, path: str, scope: Scope, explicit: set[str]) -> None:
        module = self.modules[path]
        own = self._own(path)
        if not own:
            if not any(target.startswith(path + ".") and target in self.modules for target in explicit):
                self._container(line, path, scope)
        elif line.writes and isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            self._weight(line, path, module, scope)
            self.written[path] = self._single(line.writes, scope)
        elif line.writes:
            raise self.error(f"{path} is a {type(module).__name__}: '->' is for linear layers and convolutions")
        else:
            self._carrier(line, path, module, own, scope)

    def _own(self, path: str) -> list[str]:
        module = self.modules[path]
        names = (f"{path}.{n}" for n in (*module._parameters, *module._buffers))
        return [name for name in names if name in self.tensors]

    def _carrier(self, line: Line, path: str, module: nn.Module, own: list[str], scope: Scope) -> None:
        """Norms, layer scales, depthwise convolutions: element-wise along their first axis."""
        mixes = isinstance(module, nn.modules.conv._ConvNd) and module.groups < module.in_channels
        if mixes or isinstance(module, nn.Linear):
            raise self.error(f"{path} is a {type(module).__name__} that mixes its inputs: write 'reads -> writes'")
        for name in own:
            self._claim(name)
            self._rows(name, 0, "carry", line.reads, scope)
        space = self.written[path] = self._single(line.reads, scope)
        alone = isinstance(module, nn.GroupNorm) and module.num_groups == 1
        if space and (alone or isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__):
            self.normed.add(space)
        if isinstance(module, nn.GroupNorm) and module.num_groups > 1 and space:
            self.grouped.append((space, module.num_groups, self.axes.add(f"{space}#groups")))

    def _container(self, line: Line, path: str, scope: Scope) -> None:
        """A module without parameters of its own: run through its leaves, norms carry the side they are on."""
        side = line.reads
        for name, child in self.modules[path].named_modules():
            leaf = f"{path}.{name}" if name else path
            if not self._own(leaf):
                continue
            writes = line.writes if isinstance(child, nn.Linear | nn.modules.conv._ConvNd) else ()
            self._module(Line(line.target, side, writes, number=line.number), leaf, scope, set())
            self.used.add(line)
            side = writes or side
        self.written[path] = self._single(side, scope)

    def _weight(self, line: Line, path: str, module: nn.Module, scope: Scope) -> None:
        """Linear and convolution: the output axis and the bias write, the input axis reads."""
        name = f"{path}.weight"
        transposed, groups = bool(getattr(module, "transposed", False)), int(getattr(module, "groups", 1))
        if transposed and groups > 1:
            raise self.error(f"{path}: grouped transposed convolutions are not supported")
        self._claim(name)
        self._rows(name, 1 if transposed else 0, "write", line.writes, scope)
        if groups > 1:
            axis = self.axes.add(f"{path}#groups")
            for expression in (line.reads, line.writes):
                if space := self._single(expression, scope):
                    self.grouped.append((space, groups, axis))
        self._rows(name, 0 if transposed else 1, "read", line.reads, scope, local=groups > 1)
        if f"{path}.bias" in self.tensors:
            self._claim(f"{path}.bias")
            self._rows(f"{path}.bias", 0, "write", line.writes, scope)

    def _claim(self, name: str) -> None:
        if name in self.claimed:
            raise self.error(f"{name} is already wired by line {self.claimed[name].number}")
        self.claimed[name] = self.line
        self.used.add(self.line)

    def _single(self, expression: Expression, scope: Scope) -> str | None:
        """The one space an expression names; `None` if it is fixed or a concatenation."""
        units = [name for name in expression[0] if name != "."] if len(expression) == 1 else []
        name = scope(units[-1]) if units else "."  # `in` may be the image
        return None if name in FIXED else name

    def _rows(
        self, name: str, axis: int, role: Role, expression: Expression, scope: Scope, local: bool = False
    ) -> None:
        """A row for an axis; the parts of a concatenation are cut when the sizes of their spaces are known."""
        for term in expression:
            if unit := self._single((term,), scope):
                self.names.add(unit, rank=1 if scope.block else 0)
        if len(expression) > 1:
            self.joined.append((self.line, name, axis, role, expression, scope))
        else:
            self._row(name, axis, role, expression[0], scope, (0, self.tensors[name].shape[axis]), local)

    def settle(self) -> None:
        """Cut the concatenations: spaces that other lines give a size take it, the rest is shared equally."""
        known = {self.names.find(r.space): r.length for r in self.rows if r.before == r.after == 1 and not r.local}
        for line, name, axis, role, expression, scope in self.joined:
            self.line = line
            units = [self._single((term,), scope) for term in expression]
            sizes = [
                0 if unit is None or "." in term else known.get(self.names.find(unit), 0)
                for unit, term in zip(units, expression, strict=True)
            ]
            width, open_parts = self.tensors[name].shape[axis], sizes.count(0)
            length, rest = divmod(width - sum(sizes), max(open_parts, 1))
            if rest or (length <= 0 if open_parts else length != 0):
                parts = ", ".join(f"{unit or '.'} {size or '?'}" for unit, size in zip(units, sizes, strict=True))
                raise self.error(f"{name}: axis {axis} is {width} wide, which does not fit its parts: {parts}")
            offset = 0
            for term, size in zip(expression, sizes, strict=True):
                self._row(name, axis, role, term, scope, (offset, size or length))
                offset += size or length

    def _row(
        self,
        name: str,
        axis: int,
        role: Role,
        term: Term,
        scope: Scope,
        part: tuple[int, int],
        local: bool = False,
    ) -> None:
        """One row for a part (offset, length) of an axis, unless it is fixed."""
        unit = self._single((term,), scope)
        if unit is None:
            return
        space = self.names.add(unit)
        tiled = len(term) == 2 and "." in term
        if len(term) == 2 and not tiled:
            self._group(name, space, term[0], scope)
        elif unit in self.sizes:  # the group axis itself: one unit per group
            self.grouped.append((space, self.sizes[unit], self.axes.add(unit)))
        before, after = (OPEN if tiled and term[0] == "." else 1), (OPEN if tiled and term[1] == "." else 1)
        self.rows.append(Row(name, axis, *part, role, space, before, after, local))

    def _group(self, name: str, space: str, group: str, scope: Scope) -> None:
        if scope(group) not in self.sizes:
            raise self.error(f"{name}: the number of '{group}' groups is not given under sizes:")
        self.grouped.append((space, self.sizes[scope(group)], self.axes.add(scope(group))))

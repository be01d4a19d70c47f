"""Draft wiring lines from a trace: each parameter axis becomes an expression, each module one line."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from hf_zipit.errors import TraceError
from hf_zipit.specs.grammar import HELD
from hf_zipit.tracing.draft import NO_SPACE, DraftLine, Expression, Term, Unobserved, Unwritable, probes_of
from hf_zipit.tracing.groups import Axis, TracedSpace
from hf_zipit.tracing.solve import FIXED_UNIT, Trace, keep_order


@dataclass(frozen=True)
class Draft:
    """The lines of a spec before they are folded into blocks.

    Attributes:
        lines: One line for each module, or for each parameter that is wired by itself.
        spaces: The spaces of the trace; lines refer to them by number.
        implied: Group axes that follow from the types of modules (GroupNorm, grouped convolution).
        probes: Space -> the modules that show it, `(path, "in" or "out")`.
        dropped: Spaces that the grammar cannot express, which are written as fixed.
    """

    lines: tuple[DraftLine, ...]
    spaces: tuple[TracedSpace, ...]
    implied: frozenset[str]
    probes: dict[int, tuple[tuple[str, str], ...]]
    dropped: frozenset[int]

    def is_axis(self, space: int) -> bool:
        """Whether a space is a group axis itself, with one unit per group."""
        found = self.spaces[space]
        return found.axis is not None and found.axis not in self.implied and len(found.cells) == found.size


def draft_of(trace: Trace, model: nn.Module) -> Draft:
    """Draft the lines of a traced model.

    A space that the grammar cannot express is held fixed, together with all spaces of its group axis.

    Raises:
        TraceError: no space is left.
    """
    dropped: set[int] = set()
    ordered: frozenset[Axis] = frozenset()
    while True:
        try:
            return _Drafter(trace, model, frozenset(dropped), ordered).draft()
        except Unwritable as unwritable:
            if isinstance(unwritable, Unobserved) and (kept := keep_order(trace, unwritable.spaces)) is not None:
                trace, ordered = kept[0], ordered | kept[1]
                continue
            axes = {trace.spaces[s].axis for s in unwritable.spaces} - {None}
            more = unwritable.spaces | {i for i, space in enumerate(trace.spaces) if space.axis in axes}
            if more <= dropped or len(dropped | more) == len(trace.spaces):
                raise TraceError(f"the spaces of {type(model).__name__} cannot be written as a spec") from None
            dropped |= more


class _Drafter:
    def __init__(self, trace: Trace, model: nn.Module, dropped: frozenset[int], ordered: frozenset[Axis]) -> None:
        self.trace = trace
        self.ordered = ordered  # axes on which some groups hold units that keep their order
        self.dropped = dropped
        self.modules = dict(model.named_modules())
        self.tensors = {k: v for k, v in model.state_dict().items() if v.is_floating_point() and v.ndim}
        self.location = {  # unit -> number of its space, index in the space
            unit: (number, index)
            for number, space in enumerate(trace.spaces)
            if number not in dropped
            for index, unit in enumerate(space.units)
        }
        self.classes = self._has_classes()

    def _has_classes(self) -> bool:
        """Whether only layers write the outputs of the model: then these are classes, not features."""
        ends = [key for key, why in self.trace.frozen.items() if why == "output"]
        owners = [self.modules[name.rpartition(".")[0]] for name, _ in ends]
        layers = all(isinstance(m, nn.Linear | nn.modules.conv._ConvNd) for m in owners)
        return layers and all(axis == 0 for _, axis in ends)

    def draft(self) -> Draft:
        lines = tuple(line for path, module in self.modules.items() for line in self._module(path, module))
        implied = self._implied(lines)
        self._check_sums(lines)
        draft = Draft(lines, self.trace.spaces, implied, {}, self.dropped)
        used = {space for line in lines for space in line.spaces()}
        alone = {s for s in used if draft.is_axis(s)}
        told = {draft.spaces[s].axis for s in used - alone}
        if lost := [s for s in sorted(alone) if draft.spaces[s].axis not in told]:
            raise Unwritable(lost)  # no other space of the axis identifies the groups
        draft.probes.update(
            {s: probes_of(s, lines, self.trace, self.modules) for s in sorted(used) if not draft.is_axis(s)}
        )
        return draft

    def _module(self, path: str, module: nn.Module) -> Iterator[DraftLine]:
        prefix = f"{path}." if path else ""
        own = [prefix + n for n in (*module._parameters, *module._buffers) if prefix + n in self.tensors]
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and path:
            if not self._carries(path, module):
                yield self._weight(path, module)
                own = [name for name in own if name not in (f"{path}.weight", f"{path}.bias")]
            elif own:
                yield DraftLine(path, reads=self._alike(own))
                return
        if isinstance(module, nn.MultiheadAttention) and f"{path}.in_proj_weight" in own:
            own.remove(f"{path}.in_proj_weight")
            yield self._raw_weight(f"{path}.in_proj_weight")
        if path and len(own) > 1 and all(self.tensors[name].ndim == 1 for name in own):
            with suppress(Unwritable):
                yield DraftLine(path, reads=self._alike(own))
                return
        yield from (DraftLine(name, axes=self._bare(name)) for name in own)

    def _carries(self, path: str, module: nn.Module) -> bool:
        """Whether a depthwise convolution keeps the units of its input, each of them once or several times."""
        groups, inputs, outputs = (int(getattr(module, n, 1)) for n in ("groups", "in_channels", "out_channels"))
        local = self.trace.local.get(f"{path}.weight")
        if not 1 < groups == inputs or outputs == inputs or local is None or local.units is None:
            return 1 < groups == inputs == outputs
        return torch.equal(local.units.repeat_interleave(outputs // inputs), self.trace.axes[f"{path}.weight", 0])

    def _weight(self, path: str, module: nn.Linear | nn.modules.conv._ConvNd) -> DraftLine:
        name = f"{path}.weight"
        transposed = bool(getattr(module, "transposed", False))
        groups = int(getattr(module, "groups", 1))
        reads = self._axis((name, 0 if transposed else 1))
        if groups > 1:
            local = self.trace.local.get(name)
            inner = None if local is None else local.units
            reads = (Term(".", NO_SPACE, 0),) if inner is None else self._terms(inner.tolist())
        out: Axis = (name, 1 if transposed else 0)
        final = self.classes and self.trace.frozen.get(out) == "output"
        fixed = "classes" if final else "."
        writes = self._axis(out, fixed)
        if all(t.space == NO_SPACE for t in reads) and self._first(path):
            reads = (Term("image", NO_SPACE, 0),)
        if f"{path}.bias" in self.tensors and self._axis((f"{path}.bias", 0), fixed) != writes:
            raise Unwritable([t.space for t in writes if t.space != NO_SPACE])
        line = DraftLine(path, reads, writes)
        single = all(len(e) == 1 and e[0].form == "plain" for e in (reads, writes))
        cells = {len(self.trace.spaces[s].cells) for s in line.spaces()}
        if groups > 1 and any(t.space != NO_SPACE for t in reads) and not (single and cells == {groups}):
            raise Unwritable(line.spaces())
        return line

    def _raw_weight(self, name: str) -> DraftLine:
        return DraftLine(name, reads=self._axis((name, 1)), writes=self._axis((name, 0)))

    def _first(self, path: str) -> bool:
        layers = [p for p, m in self.modules.items() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
        return layers[:1] == [path]

    def _alike(self, names: Sequence[str]) -> Expression:
        """The common expression of several vectors (or depthwise kernels) along their first axis."""
        found = [self._axis((name, 0)) for name in names]
        if any(e != found[0] for e in found):
            raise Unwritable([t.space for e in found for t in e if t.space != NO_SPACE])
        return found[0]

    def _bare(self, name: str) -> tuple[Expression, ...]:
        axes = tuple(self._axis((name, axis)) for axis in range(self.tensors[name].ndim))
        free = [[t.space for t in e if t.space != NO_SPACE] for e in axes]
        if sum(map(bool, free)) > 1:  # averaging is defined along one axis
            raise Unwritable(min((f for f in free if f), key=lambda f: sum(self.trace.spaces[s].size for s in f)))
        return axes

    def _axis(self, key: Axis, fixed: str = ".") -> Expression:
        units = self.trace.axes.get(key)
        if units is None:
            return (Term(fixed, NO_SPACE, 0),)
        terms = self._terms(units.tolist(), fixed)
        return tuple(replace(t, form="inside") if t.form == "repeat" and key in self.ordered else t for t in terms)

    def _terms(self, units: list[int], fixed: str = ".") -> Expression:
        """Divide an axis into runs of one space, and find how each run repeats the space."""
        numbers = [self.location[u][0] if u in self.location else NO_SPACE for u in units]
        terms: list[Term] = []
        start = 0
        while start < len(units):
            stop = start
            while stop < len(units) and numbers[stop] == numbers[start]:
                stop += 1
            if numbers[start] == NO_SPACE:
                free = any(unit != FIXED_UNIT for unit in units[start:stop])
                terms.append(Term(HELD if free else fixed, NO_SPACE, stop - start))
            else:
                terms += self._run(units[start:stop], numbers[start], whole=stop - start == len(units))
            start = stop
        return (Term(terms[0].form, NO_SPACE, 0),) if len(terms) == 1 and terms[0].space == NO_SPACE else tuple(terms)

    def _run(self, units: list[int], space: int, whole: bool) -> list[Term]:
        size = self.trace.spaces[space].size
        index = torch.tensor([self.location[u][1] for u in units])
        order = torch.arange(size)
        copies, rest = divmod(len(units), size)
        for parts in (p for p in range(copies, 0, -1) if copies % p == 0 and not rest):
            if torch.equal(index, order.repeat_interleave(copies // parts).repeat(parts)):
                if parts == copies > 4 and whole:
                    return [Term("tile", space, len(units))]
                return [Term("plain" if parts == copies else "repeat", space, len(units) // parts)] * parts
        raise Unwritable([space])

    def _implied(self, lines: Sequence[DraftLine]) -> frozenset[str]:
        """Group axes all of whose spaces are under a GroupNorm or grouped convolution of as many groups."""
        stated = set()
        for line in lines:
            module = self.modules.get(line.target)
            groups = getattr(module, "num_groups" if isinstance(module, nn.GroupNorm) else "groups", 1)
            for e in (line.reads, line.writes):
                if len(e) == 1 and e[0].form == "plain" and len(self.trace.spaces[e[0].space].cells) == groups > 1:
                    stated.add(e[0].space)
        axes = {space.axis for space in self.trace.spaces if space.axis}
        return frozenset(
            a for a in axes if all(i in stated for i, space in enumerate(self.trace.spaces) if space.axis == a)
        )

    def _check_sums(self, lines: Sequence[DraftLine]) -> None:
        """Drop concatenations whose parts do not follow from the sizes that other lines give."""
        sides = [e for line in lines for e in (line.reads, line.writes, *line.axes)]
        known = {e[0].space for e in sides if len(e) == 1 and e[0].form == "plain"}
        for e in sides:
            open_parts = {t.length for t in e if t.space not in known or t.form != "plain"}
            if len(e) > 1 and len(open_parts) > 1:
                raise Unwritable([t.space for t in e if t.space != NO_SPACE])

"""Write a trace as a spec file that people can read, edit and check."""

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from hf_zipit.specs.grammar import FIXED_AXES, HELD
from hf_zipit.tracing.draft import NO_SPACE, DraftLine, Expression
from hf_zipit.tracing.fold import DraftBlock, Layout, chain_patterns, fold_blocks, patterns
from hf_zipit.tracing.lines import Draft, draft_of
from hf_zipit.tracing.parts import Part
from hf_zipit.tracing.solve import Trace

WIDTH = 118
Probes = list[tuple[str, str]]  # (space name, "module.side")


def write_spec(trace: Trace, model: nn.Module, family: str, chain: Sequence[str] | Sequence[Part] = ()) -> str:
    """Write a trace as a spec, with repeated modules folded into blocks.

    Args:
        trace: The trace.
        model: The traced model.
        family: Name of the family.
        chain: The steps of the model (`cuts.chain_of`), or the parts of its forward pass (`parts.parts_of`).

    Raises:
        TraceError: the grammar can express none of the spaces.

    >>> print(write_spec(trace(model, pixels), model, "traced-resnet18"))  # doctest: +SKIP
    family: traced-resnet18
    match: [...]
    """
    draft = draft_of(trace, model)
    modules = dict(model.named_modules())
    layout = fold_blocks(draft.lines, modules)
    text = _Text(draft, layout, modules)
    parts = [part for part in chain if isinstance(part, Part)]
    steps = [text.part(part) for part in parts] or chain_patterns([str(step) for step in chain], list(modules))
    return "\n".join(text.document(type(model), family, steps)) + "\n"


@dataclass
class _Names:
    """The names of one scope.

    Attributes:
        spaces: Number of a space -> its name.
        axes: Group axis of the trace -> its name.
        sizes: Name of a group axis -> its number of groups, as written under `sizes:`.
    """

    spaces: dict[int, str]
    axes: dict[str, str]
    sizes: dict[str, str] = field(default_factory=dict)


class _Text:
    def __init__(self, draft: Draft, layout: Layout, modules: dict[str, nn.Module]) -> None:
        self.draft = draft
        self.layout = layout
        self.modules = modules
        self.top = self._top_names()
        self.scopes = [self._block_names(b, r) for b, r in zip(layout.blocks, layout.roles, strict=True)]

    # -- names

    def _top_names(self) -> _Names:
        """The names of the spaces in top-level lines, and of the stream through the blocks."""
        names = _Names({}, {})
        spaces = [s for line in self.layout.top for s in line.spaces() if s != self.layout.last]
        uses = Counter(s for b in self.layout.blocks for e in b.lines for s in e.spaces() if s in set(spaces))
        taken = {"in", "out", "last", "stem", "x", *FIXED_AXES}
        if uses and not self.layout.made:
            names.spaces[uses.most_common(1)[0][0]] = "x"
        elif self.layout.start in spaces:
            names.spaces[self.layout.start] = "stem"
        self._name(names, self.layout.top, [s for s in spaces if s not in names.spaces], taken, "")
        if self.layout.last is not None:
            names.spaces[self.layout.last] = "last"
        return names

    def _block_names(self, block: DraftBlock, roles: dict[int, str]) -> _Names:
        names = _Names({s: role or self.top.spaces[s] for s, role in roles.items()}, dict(self.top.axes))
        taken = {"in", "out", "last", *FIXED_AXES, *self.top.spaces.values(), *self.top.axes.values()}
        self._name(names, block.lines, [s for s in block.spaces() if s not in roles], taken, block.path)
        return names

    def _name(
        self, names: _Names, lines: Sequence[DraftLine], spaces: Iterable[int], taken: set[str], path: str
    ) -> None:
        """Name spaces after the layer that writes them, and the two spaces of an attention layer `qk` and `vo`."""
        spaces = list(dict.fromkeys(spaces))
        for axis in dict.fromkeys(self._axis(s) for s in spaces):
            if axis is not None and axis not in names.axes:
                names.axes[axis] = _unused("head", taken)
                members = [s for s in spaces if self._axis(s) == axis]
                names.sizes[names.axes[axis]] = self._size(len(self.draft.spaces[members[0]].cells), lines, path)
                pair = _pair(lines, [s for s in members if not self.draft.is_axis(s)])
                names.spaces.update({s: _unused(n, taken) for s, n in zip(pair, ("qk", "vo"), strict=False)})
        for space in spaces:
            if self.draft.is_axis(space):
                names.spaces[space] = names.axes[str(self._axis(space))]
            elif space not in names.spaces:
                names.spaces[space] = _unused(_stem(lines, space), taken)

    def _axis(self, space: int) -> str | None:
        axis = self.draft.spaces[space].axis
        return None if axis in self.draft.implied else axis

    def _size(self, count: int, lines: Sequence[DraftLine], path: str) -> str:
        """The number of groups: an attribute of the block such as `attn.num_heads`, else the number itself."""
        for owner in dict.fromkeys(e.target.rpartition(".")[0] for e in lines) if path else ():
            found = vars(self.modules[f"{path}.{owner}" if owner else path])
            for name, value in found.items():
                if "head" in name and type(value) is int and value == count:
                    return f"{owner}.{name}" if owner else name
        return str(count)

    # -- lines

    def _expression(self, expression: Expression, names: _Names) -> str:
        parts = []
        for term in expression:
            if term.space == NO_SPACE:
                parts.append(term.form)
                continue
            name, axis = names.spaces[term.space], self._axis(term.space)
            if term.form != "plain":
                parts.append({"tile": f"(. {name})", "inside": f"({name} {HELD})"}.get(term.form, f"({name} .)"))
            elif axis is not None and not self.draft.is_axis(term.space):
                parts.append(f"({names.axes[axis]} {name})")
            else:
                parts.append(name)
        return " + ".join(parts)

    def _line(self, line: DraftLine, names: _Names) -> str:
        if line.axes:
            return f"{line.target}: [{', '.join(self._expression(e, names) for e in line.axes)}]"
        reads = self._expression(line.reads, names)
        return f"{line.target}: {reads}" + (f" -> {self._expression(line.writes, names)}" if line.writes else "")

    def _bodies(self) -> dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], list[int]]:
        """The blocks by their text and sizes; blocks of the same text become one entry of the spec."""
        found = defaultdict(list)
        for number, (block, names) in enumerate(zip(self.layout.blocks, self.scopes, strict=True)):
            text = tuple(self._line(line, names) for line in block.lines)
            found[text, tuple(names.sizes.items())].append(number)
        return found

    # -- probes

    def _probes(self, bodies: Iterable[list[int]]) -> tuple[Probes, list[Probes]]:
        """The probes of the top level, by full name, and those of each entry: the probes that all its blocks share."""
        shared: list[Probes] = []
        done: set[tuple[int, tuple[str, str]]] = set()
        for numbers in bodies:
            here: list[dict[tuple[str, str], tuple[int, tuple[str, str]]]] = []
            for number in numbers:
                prefix = self.layout.blocks[number].path + "."
                mine = {}
                for space, name in self.scopes[number].spaces.items():
                    for point in self.draft.probes.get(space, ()):
                        if point[0].startswith(prefix):
                            mine[name, f"{point[0].removeprefix(prefix)}.{point[1]}"] = (space, point)
                here.append(mine)
            common = [key for key in here[0] if all(key in mine for mine in here)]
            done.update(mine[key] for mine in here for key in common)
            shared.append(common)
        rest = [(s, p) for s, points in self.draft.probes.items() for p in points if (s, p) not in done]
        return [(self._full(space), f"{module}.{side}") for space, (module, side) in rest], shared

    def _named(self, space: int) -> bool:
        """Whether a line of the spec names a space."""
        return any(space in names.spaces for names in (self.top, *self.scopes)) or space in self.layout.made

    def _full(self, space: int) -> str:
        """The full name of a space."""
        if space in self.top.spaces:
            return self.top.spaces[space]
        if space in self.layout.made:
            return f"{self.layout.made[space]}.out"
        block = next(n for n, names in enumerate(self.scopes) if space in names.spaces)
        return f"{self.layout.blocks[block].path}.{self.scopes[block].spaces[space]}"

    # -- the document

    def part(self, part: Part) -> str:
        """A part of the forward pass as a step of the chain."""
        owns = f"({', '.join(part.owns)})" if part.owns else ""
        shown = "" if part.space is None or not self._named(part.space) else f" -> {self._full(part.space)}"
        return f"{part.name}{owns}{shown}"

    def document(self, model: type[nn.Module], family: str, steps: list[str]) -> list[str]:
        bodies = self._bodies()
        top, shared = self._probes(bodies.values())
        name = re.sub(r"\W", "_", family)
        count = len({s for e in self.draft.lines for s in e.spaces()})
        out = [f"family: {family}", f"match: [{model.__module__}.{model.__qualname__}]"]
        if self.draft.dropped:
            out.append(
                f"# {len(self.draft.dropped)} spaces are left fixed: they are not observable, or not in the grammar"
            )
        if any("(" in step for step in steps):
            out += ["chain:", *(f"- {step}" for step in steps)]
        elif steps:
            out.append(f"chain: [{', '.join(_quoted(step) for step in steps)}]")
        if self.layout.start is not None:
            out.append(f"stream: {self._full(self.layout.start)}")
        out += _mapping("sizes", self.top.sizes.items(), "")
        out += ["wire:", *("  " + self._line(line, self.top) for line in self.layout.top)]
        out += _mapping("probe", _grouped(top), "")
        out += ["blocks:"] if bodies else []
        paths = [path for path, module in self.modules.items() if path and module.state_dict()]
        for ((text, sizes), numbers), probes in zip(bodies.items(), shared, strict=True):
            out.append(f"- each: {_listed(patterns([self.layout.blocks[n].path for n in numbers], paths))}")
            out += _mapping("sizes", sizes, "  ")
            out += ["  wire:", *("    " + line for line in text)]
            out += _mapping("probe", _grouped(probes), "  ")
        return [part for line in (*out, "check:", f"  {name}: {count}") for part in _wrapped(line)]


def _unused(name: str, taken: set[str]) -> str:
    tried = name
    number = 1
    while tried in taken:
        number += 1
        tried = f"{name}_{number}"
    taken.add(tried)
    return tried


def _stem(lines: Sequence[DraftLine], space: int) -> str:
    """A name for a space: the name of the layer that writes it, without numbers."""
    mine = [e for e in lines if space in e.spaces()]
    line = next((e for e in mine if any(t.space == space for t in e.writes)), mine[0])
    words = [word for word in line.target.split(".") if not word.isdigit()]
    return re.sub(r"\W", "_", words[-1]) if words and not words[-1][0].isdigit() else "a"


def _pair(lines: Sequence[DraftLine], spaces: Sequence[int]) -> list[int]:
    """The query-key space and the value space: two layers write the former, one the latter. `[]` otherwise."""
    if len(spaces) != 2:
        return []
    written = Counter(t.space for e in lines for t in e.writes)
    first, second = sorted(spaces, key=lambda s: -written[s])
    return [first, second] if written[first] > written[second] else []


def _grouped(probes: Probes) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name, point in probes:
        found[name].append(point)
    return [(name, _listed(points)) for name, points in found.items()]


def _mapping(key: str, items: Iterable[tuple[str, str]], indent: str) -> list[str]:
    lines = [f"{indent}  {name}: {value}" for name, value in items]
    return [f"{indent}{key}:", *lines] if lines else []


def _listed(texts: Sequence[str]) -> str:
    """A YAML list in one line; a single text stands alone."""
    return texts[0] if len(texts) == 1 and "{" not in texts[0][:1] else f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    return f'"{text}"' if "{" in text else text


def _wrapped(line: str) -> list[str]:
    """Break a long line; YAML reads the indented rest as part of it."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

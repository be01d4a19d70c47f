"""Writing a trace as a spec file that people can read, edit and check."""

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from hf_zipit.tracing.entries import NO_SPACE, Entry, Expression
from hf_zipit.tracing.fold import Block, Plan, chain_patterns, fold, patterns
from hf_zipit.tracing.lines import Lines, lines_of
from hf_zipit.tracing.solve import Trace

WIDTH = 118
Probes = list[tuple[str, str]]  # (space name, "module.side")


def write_spec(trace: Trace, model: nn.Module, family: str, chain: Sequence[str] = ()) -> str:
    """Write a trace in the grammar of the spec files, with what repeats folded into blocks.

    Args:
        chain: the steps of the model (`cuts.chain_of`), if it has any.

    Raises:
        TraceError: nothing of it can be said in the grammar.

    >>> print(write_spec(trace(model, pixels), model, "traced-resnet18"))  # doctest: +SKIP
    family: traced-resnet18
    match: [...]
    """
    lines = lines_of(trace, model)
    modules = dict(model.named_modules())
    plan = fold(lines.entries, modules)
    steps = chain_patterns(chain, list(modules))
    return "\n".join(_Text(lines, plan, modules).document(type(model), family, steps)) + "\n"


@dataclass
class _Names:
    """The names of one scope: spaces, group axes and the sizes of those."""

    spaces: dict[int, str]
    axes: dict[str, str]
    sizes: dict[str, str] = field(default_factory=dict)


class _Text:
    def __init__(self, lines: Lines, plan: Plan, modules: dict[str, nn.Module]) -> None:
        self.lines, self.plan, self.modules = lines, plan, modules
        self.top = self._top_names()
        self.scopes = [self._block_names(b, r) for b, r in zip(plan.blocks, plan.roles, strict=True)]

    # -- names

    def _top_names(self) -> _Names:
        """Names of the spaces that top-level lines mention, and of the stream that blocks pass on."""
        names = _Names({}, {})
        spaces = [s for entry in self.plan.top for s in entry.spaces() if s != self.plan.last]
        uses = Counter(s for b in self.plan.blocks for e in b.entries for s in e.spaces() if s in set(spaces))
        taken = {"in", "out", "last", "image", "classes", "stem", "x"}
        if uses and not self.plan.made:
            names.spaces[uses.most_common(1)[0][0]] = "x"
        elif self.plan.start in spaces:
            names.spaces[self.plan.start] = "stem"
        self._name(names, self.plan.top, [s for s in spaces if s not in names.spaces], taken, "")
        if self.plan.last is not None:
            names.spaces[self.plan.last] = "last"
        return names

    def _block_names(self, block: Block, roles: dict[int, str]) -> _Names:
        names = _Names({s: role or self.top.spaces[s] for s, role in roles.items()}, dict(self.top.axes))
        taken = {"in", "out", "last", "image", "classes", *self.top.spaces.values(), *self.top.axes.values()}
        self._name(names, block.entries, [s for s in block.spaces() if s not in roles], taken, block.path)
        return names

    def _name(self, names: _Names, entries: Sequence[Entry], spaces: Iterable[int], taken: set[str], path: str) -> None:
        """Call spaces after the layer that writes them, the two spaces of an attention layer `qk` and `vo`."""
        spaces = list(dict.fromkeys(spaces))
        for axis in dict.fromkeys(self._axis(s) for s in spaces):
            if axis is not None and axis not in names.axes:
                names.axes[axis] = _unused("head", taken)
                members = [s for s in spaces if self._axis(s) == axis]
                names.sizes[names.axes[axis]] = self._size(len(self.lines.spaces[members[0]].cells), entries, path)
                pair = _pair(entries, [s for s in members if not self.lines.is_axis(s)])
                names.spaces.update({s: _unused(n, taken) for s, n in zip(pair, ("qk", "vo"), strict=False)})
        for space in spaces:
            if self.lines.is_axis(space):
                names.spaces[space] = names.axes[str(self._axis(space))]
            elif space not in names.spaces:
                names.spaces[space] = _unused(_stem(entries, space), taken)

    def _axis(self, space: int) -> str | None:
        axis = self.lines.spaces[space].axis
        return None if axis in self.lines.implied else axis

    def _size(self, count: int, entries: Sequence[Entry], path: str) -> str:
        """The number of groups: an attribute of the block such as `attn.num_heads` where there is one."""
        for owner in dict.fromkeys(e.target.rpartition(".")[0] for e in entries) if path else ():
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
                parts.append(f"(. {name})" if term.form == "tile" else f"({name} .)")
            elif axis is not None and not self.lines.is_axis(term.space):
                parts.append(f"({names.axes[axis]} {name})")
            else:
                parts.append(name)
        return " + ".join(parts)

    def _line(self, entry: Entry, names: _Names) -> str:
        if entry.axes:
            return f"{entry.target}: [{', '.join(self._expression(e, names) for e in entry.axes)}]"
        reads = self._expression(entry.reads, names)
        return f"{entry.target}: {reads}" + (f" -> {self._expression(entry.writes, names)}" if entry.writes else "")

    def _bodies(self) -> dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], list[int]]:
        """Blocks by their text: equal ones become one entry."""
        found = defaultdict(list)
        for number, (block, names) in enumerate(zip(self.plan.blocks, self.scopes, strict=True)):
            text = tuple(self._line(entry, names) for entry in block.entries)
            found[text, tuple(names.sizes.items())].append(number)
        return found

    # -- probes

    def _probes(self, bodies: Iterable[list[int]]) -> tuple[Probes, list[Probes]]:
        """Probes that all blocks of an entry share go there, the others to the top level by full name."""
        shared: list[Probes] = []
        done: set[tuple[int, tuple[str, str]]] = set()
        for numbers in bodies:
            here: list[dict[tuple[str, str], tuple[int, tuple[str, str]]]] = []
            for number in numbers:
                prefix = self.plan.blocks[number].path + "."
                mine = {}
                for space, name in self.scopes[number].spaces.items():
                    for point in self.lines.probes.get(space, ()):
                        if point[0].startswith(prefix):
                            mine[name, f"{point[0].removeprefix(prefix)}.{point[1]}"] = (space, point)
                here.append(mine)
            common = [key for key in here[0] if all(key in mine for mine in here)]
            done.update(mine[key] for mine in here for key in common)
            shared.append(common)
        rest = [(s, p) for s, points in self.lines.probes.items() for p in points if (s, p) not in done]
        return [(self._full(space), f"{module}.{side}") for space, (module, side) in rest], shared

    def _full(self, space: int) -> str:
        """The name of a space at top level."""
        if space in self.top.spaces:
            return self.top.spaces[space]
        if space in self.plan.made:
            return f"{self.plan.made[space]}.out"
        block = next(n for n, names in enumerate(self.scopes) if space in names.spaces)
        return f"{self.plan.blocks[block].path}.{self.scopes[block].spaces[space]}"

    # -- the document

    def document(self, model: type[nn.Module], family: str, steps: list[str]) -> list[str]:
        bodies = self._bodies()
        top, shared = self._probes(bodies.values())
        name, count = re.sub(r"\W", "_", family), len({s for e in self.lines.entries for s in e.spaces()})
        out = [f"family: {family}", f"match: [{model.__module__}.{model.__qualname__}]"]
        if self.lines.dropped:
            out.append(f"# {len(self.lines.dropped)} spaces that cannot be observed or said here are left fixed")
        out += [f"chain: [{', '.join(_quoted(step) for step in steps)}]"] if steps else []
        if self.plan.start is not None:
            out.append(f"stream: {self._full(self.plan.start)}")
        out += _mapping("sizes", self.top.sizes.items(), "")
        out += ["wire:", *("  " + self._line(entry, self.top) for entry in self.plan.top)]
        out += _mapping("probe", _grouped(top), "")
        out += ["blocks:"] if bodies else []
        paths = [path for path, module in self.modules.items() if path and module.state_dict()]
        for ((text, sizes), numbers), probes in zip(bodies.items(), shared, strict=True):
            out.append(f"- each: {_listed(patterns([self.plan.blocks[n].path for n in numbers], paths))}")
            out += _mapping("sizes", sizes, "  ")
            out += ["  wire:", *("    " + line for line in text)]
            out += _mapping("probe", _grouped(probes), "  ")
        return [part for line in (*out, "check:", f"  {name}: {count}") for part in _wrapped(line)]


def _unused(name: str, taken: set[str]) -> str:
    tried, number = name, 1
    while tried in taken:
        number += 1
        tried = f"{name}_{number}"
    taken.add(tried)
    return tried


def _stem(entries: Sequence[Entry], space: int) -> str:
    """A name for a space: the layer that writes it, without numbers that only count."""
    mine = [e for e in entries if space in e.spaces()]
    entry = next((e for e in mine if any(t.space == space for t in e.writes)), mine[0])
    words = [word for word in entry.target.split(".") if not word.isdigit()]
    return re.sub(r"\W", "_", words[-1]) if words and not words[-1][0].isdigit() else "a"


def _pair(entries: Sequence[Entry], spaces: Sequence[int]) -> list[int]:
    """Queries and keys are written by two layers, values by one; anything else gets no special name."""
    if len(spaces) != 2:
        return []
    written = Counter(t.space for e in entries for t in e.writes)
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
    """A list in one line, or the text itself if there is one."""
    return texts[0] if len(texts) == 1 and "{" not in texts[0][:1] else f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    return f'"{text}"' if "{" in text else text


def _wrapped(line: str) -> list[str]:
    """A long line goes on in the next one, indented: YAML reads it as one."""
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

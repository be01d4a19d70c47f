"""Fold wiring lines into blocks: which modules repeat, and what a block calls the spaces that it shares."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from torch import nn

from hf_zipit.specs import parser as specs
from hf_zipit.tracing.draft import DraftLine


@dataclass(frozen=True)
class DraftBlock:
    """A module whose lines form a block; their targets are relative to `path`."""

    path: str
    lines: tuple[DraftLine, ...]

    def spaces(self) -> list[int]:
        """The spaces that the lines mention, in order."""
        return list(dict.fromkeys(s for line in self.lines for s in line.spaces()))


@dataclass(frozen=True)
class Layout:
    """How the lines of a spec are divided into the top level and blocks.

    Attributes:
        top: The lines at the top level.
        blocks: The blocks, in registration order.
        roles: For each block, what it calls the spaces that it shares: `in`, `out`, or `""` for the top-level name.
        start: The stream that enters the first block.
        last: The stream that leaves the last block, if the top level reads it.
        made: Stream -> path of the block that makes it.
    """

    top: tuple[DraftLine, ...]
    blocks: tuple[DraftBlock, ...]
    roles: tuple[dict[int, str], ...]
    start: int | None
    last: int | None
    made: dict[int, str]


def fold_blocks(lines: Sequence[DraftLine], modules: dict[str, nn.Module]) -> Layout:
    """Choose the blocks, and the stream through them, that leave the fewest lines to write."""
    layouts = []
    for least in (2, 1):
        blocks = _blocks(lines, modules, least)
        inside = {f"{b.path}.{e.target}" for b in blocks for e in b.lines}
        outer = {s for line in lines if line.target not in inside for s in line.spaces()}
        last = [s for s in blocks[-1].spaces() if s in outer] if blocks else []
        layouts += [layout for choice in (*last, None) if (layout := _layout(lines, blocks, choice)) is not None]
    return min(layouts, key=_cost)


def _cost(layout: Layout) -> int:
    """The number of lines to write."""
    bodies = set()
    for block, roles in zip(layout.blocks, layout.roles, strict=True):
        names: dict[int, str] = {}
        for space in block.spaces():
            names[space] = roles.get(space, str(len(names))) or f"top {space}"
        bodies.add(tuple((e.target, tuple(names[s] for s in e.spaces())) for e in block.lines))
    return len(layout.top) + sum(len(body) + 3 for body in bodies)


def _blocks(lines: Sequence[DraftLine], modules: dict[str, nn.Module], least: int) -> list[DraftBlock]:
    """Choose blocks greedily: first the module path (up to integers) whose repetition saves most lines.

    A block has at least `least` lines. A single line is worth a block where it passes the stream on (downsampling).
    """
    mine: dict[str, list[DraftLine]] = defaultdict(list)
    for line in lines:
        parts = line.target.split(".")
        for end in range(1, len(parts)):
            path = ".".join(parts[:end])
            if re.search(r"\d", path) and path in modules:
                mine[path].append(replace(line, target=".".join(parts[end:])))
    kinds: dict[str, list[str]] = defaultdict(list)
    for path, found in mine.items():
        if len(found) >= least:
            kinds[re.sub(r"\d+", "{}", path)].append(path)

    def saving(paths: list[str]) -> int:
        sizes = [len(mine[path]) for path in paths]
        return sum(sizes) - max(sizes, default=0)

    chosen: list[str] = []
    while kinds:
        best = max(kinds, key=lambda kind: saving(kinds[kind]))
        if saving(kinds[best]) <= 0:
            break
        chosen += kinds.pop(best)
        kinds = {kind: [p for p in paths if not _nested(p, chosen)] for kind, paths in kinds.items()}
    return [DraftBlock(path, tuple(mine[path])) for path in modules if path in chosen]


def _nested(path: str, others: Iterable[str]) -> bool:
    return any((path + ".").startswith(o + ".") or (o + ".").startswith(path + ".") for o in others)


def _layout(lines: Sequence[DraftLine], blocks: Sequence[DraftBlock], last: int | None) -> Layout | None:
    """Follow the stream through the blocks. The lines of a block that joins other streams go to the top level."""
    while True:
        inside = {f"{b.path}.{e.target}" for b in blocks for e in b.lines}
        top = tuple(line for line in lines if line.target not in inside)
        outer = {s for line in top for s in line.spaces()} - {last}
        layout, bad = _follow(top, blocks, outer, last)
        if bad is None:
            return layout
        if len(blocks) == 1 and last is not None:
            return None
        blocks = [b for b in blocks if b is not bad]


def _follow(
    top: tuple[DraftLine, ...], blocks: Sequence[DraftBlock], outer: set[int], last: int | None
) -> tuple[Layout | None, DraftBlock | None]:
    uses = Counter(s for b in blocks for s in b.spaces())
    current: int | None = None
    start: int | None = None
    seen: set[int] = set()
    made: dict[int, str] = {}
    all_roles: list[dict[int, str]] = []
    for block in blocks:
        others = [s for s in block.spaces() if s in outer or uses[s] > 1 or s == last]
        if start is None:
            start = current = next((s for s in others if s in outer), None)
        new = [s for s in others if s not in outer and s not in seen and s != current]
        if len(new) > 1 or any(s not in outer and s != current and s not in new for s in others):
            return None, block
        all_roles.append({s: "in" if s == current else "out" if s in new else "" for s in others})
        if new:
            current = new[0]
            made[current] = block.path
        seen.update(others)
    if last is not None and current != last:
        return None, None
    if not made:  # a single stream keeps its name
        all_roles = [dict.fromkeys(roles, "") for roles in all_roles]
    return Layout(top, tuple(blocks), tuple(all_roles), start, last, made), None


def chain_patterns(steps: Sequence[str], modules: Sequence[str]) -> list[str]:
    """The steps of a chain, with runs of similar modules as patterns.

    >>> chain_patterns(["stem", "layer1.0", "layer1.1", "fc"], ["stem", "layer1.0", "layer1.1", "fc"])
    ['stem', 'layer{i}.{j}', 'fc']
    """
    out = []
    done = 0
    while done < len(steps):
        hits = [steps[done]]
        for tried in _generalised(steps[done]):
            found = [m for m in modules if specs.pattern(tried).fullmatch(m)]
            if len(found) > 1 and found == list(steps[done : done + len(found)]):
                hits = found
                break
        out += patterns(hits, modules)
        done += len(hits)
    return out


def _generalised(path: str, alike: Sequence[str] = ()) -> Iterator[str]:
    """Patterns that match a path: the most general one first, the path itself last.

    Integers that are the same in all paths of `alike` are kept.
    """
    pieces = re.split(r"(\d+)", path)
    others = [q for q in (re.split(r"(\d+)", p) for p in alike) if q[::2] == pieces[::2]]
    numbers = [k for k in range(1, len(pieces), 2) if not others or any(q[k] != pieces[k] for q in others)]
    for held in (c for count in range(len(numbers) + 1) for c in combinations(numbers, count)):
        holes = iter("ijklmnop")
        yield "".join(
            f"{{{next(holes)}}}" if k in numbers and k not in held else piece for k, piece in enumerate(pieces)
        )


def patterns(paths: Sequence[str], modules: Sequence[str]) -> list[str]:
    """A few path patterns that match these modules and no others.

    >>> patterns(["layer1.0", "layer2.0"], ["layer1.0", "layer1.1", "layer2.0"])
    ['layer{i}.0']
    """
    left = list(paths)
    out = []
    while left:
        for tried in _generalised(left[0], paths):
            hits = [m for m in modules if specs.pattern(tried).fullmatch(m)]
            if set(hits) <= set(paths):
                break
        out.append(tried)
        left = [path for path in left if path not in hits]
    return out

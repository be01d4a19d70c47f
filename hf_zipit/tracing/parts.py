"""Divide the forward pass of any model into parts, at the modules after which exactly one tensor is alive."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from hf_zipit.models.resume import around
from hf_zipit.tracing.cuts import Call, Flow, Version, has_number, replay
from hf_zipit.tracing.solve import Trace

REST = "call:forward"  # the last part: the rest of the model's own forward


@dataclass(frozen=True)
class Part:
    """A part of a forward pass.

    Attributes:
        name: The module at whose output the part ends; `REST` for the last part.
        owns: The modules and parameters that it needs besides this module. Parts may share parameters.
        space: Number of the space of that output in the trace; `None` for the last part.
    """

    name: str
    owns: tuple[str, ...]
    space: int | None


@torch.no_grad()
def parts_of(model: nn.Module, pixels: Tensor, traced: Trace, channels_last: bool = False) -> list[Part]:
    """The parts of a model's forward pass; `[]` if it can be divided nowhere.

    A part ends where one tensor that depends on the image is alive, and shows one space on its channel axis.

    Args:
        model: The model; it is not changed.
        pixels: One image, (1, channels, height, width); only its shape is used.
        traced: The trace of the model.
        channels_last: Whether the channels of maps are on their last axis.

    Raises:
        TraceError: the model does not run on this image.

    >>> [part.name for part in parts_of(model, pixels, trace(model, pixels))][:2]  # doctest: +SKIP
    ['patch_embed', 'blocks.0']
    """
    flow, alive, _ = replay(model, pixels)
    spaces = {call.path: _space_after(call.path, traced, channels_last) for call in flow.calls}
    mixed = [call.path for call in flow.calls if not call.whole]  # parts may need what they return beside the tensor
    cuts = _outermost(_candidates(model, flow, alive, spaces)[0], model)
    if not cuts:
        return []
    bounds = [0, *(call.end for call in cuts), len(flow.ops) + 1]
    needed = [flow.weights_in(start, end) for start, end in pairwise(bounds)]
    open_ = {outer for call in cuts for outer in around(call.path)}
    owned = _owned(model, needed, open_.union(mixed))
    parts = [
        Part(call.path, tuple(name for name in mine if name != call.path), spaces[call.path])
        for call, mine in zip(cuts, owned, strict=False)
    ]
    return [*parts, Part(REST, tuple(owned[-1]), None)]


@torch.no_grad()
def why_whole(model: nn.Module, pixels: Tensor, traced: Trace) -> str:
    """Why a forward pass cannot be divided; arguments and errors as for `parts_of`.

    >>> why_whole(model, pixels, trace(model, pixels))  # doctest: +SKIP
    'the module layers.0 runs several times'
    """
    flow, alive, _ = replay(model, pixels)
    spaces = {
        call.path: next((n for last in (False, True) if (n := _space_after(call.path, traced, last)) is not None), None)
        for call in flow.calls
    }
    return _candidates(model, flow, alive, spaces)[1]


def _candidates(
    model: nn.Module, flow: Flow, alive: Sequence[set[Version]], spaces: Mapping[str, int | None]
) -> tuple[list[Call], str]:
    """The calls after which a part may end, and why there are no others."""
    counts = Counter(call.path for call in flow.calls)
    before = [call for call in flow.calls if call.end < len(flow.ops)]
    left = [call for call in before if alive[call.end] == {call.after} and call.whole]
    reason = "exactly one tensor is alive after no module but the last"
    tests: dict[str, Callable[[Call], bool]] = {
        "runs several times": lambda call: counts[call.path] == 1,
        "puts out no feature space that could be merged": lambda call: spaces[call.path] is not None,
        "shares weights with others": lambda call: _needed_only_inside(call, model, flow),
    }
    for said, passes in tests.items():
        outer = min(left, key=lambda call: call.path.count("."), default=None)
        reason = f"the module {outer.path} {said}" if outer else reason
        left = [call for call in left if passes(call)]
        if not left:
            break
    return left, reason


def without(parts: Sequence[Part], name: str) -> list[Part]:
    """The parts, with the one that ends at a module joined to the next."""
    out: list[Part] = []
    joined: tuple[str, ...] = ()
    for part in parts:
        if part.name == name:
            joined = (*part.owns, part.name)
        else:
            out.append(replace(part, owns=tuple(dict.fromkeys((*joined, *part.owns)))))
            joined = ()
    return out


def _outermost(calls: Sequence[Call], model: nn.Module) -> list[Call]:
    """The calls of modules that are not inside a block, which holds no numbered modules; one for each tensor."""
    modules = dict(model.named_modules())
    paths = {inner for call in calls for inner in [*around(call.path), call.path]}
    numbered = {inner for inner in paths if inner.rpartition(".")[2].isdigit() or has_number(inner, modules)}
    stacks = {path for inner in numbered for path in around(inner)}
    plain = [call.path for call in calls if not isinstance(modules[call.path], nn.Sequential | nn.ModuleList)]
    blocks = set(plain) - stacks
    found: dict[Version, Call] = {}
    for call in calls:  # in the order in which they end, so inner ones come first
        if blocks.isdisjoint(around(call.path)):
            found.setdefault(call.after, call)
    return list(found.values())


def _needed_only_inside(call: Call, model: nn.Module, flow: Flow) -> bool:
    """Whether the weights of a module are needed nowhere but inside its call."""
    outside = flow.weights_in(0, call.start) | flow.weights_in(call.end, len(flow.ops) + 1)
    return not any(name.startswith(f"{call.path}.") for name in outside)


def _space_after(path: str, traced: Trace, channels_last: bool) -> int | None:
    """The number of the space that the output of a module shows on its channel axis, and nowhere else."""
    shown = traced.points.get((path, "out"))
    if shown is None or shown.ndim not in (2, 3, 4):
        return None
    units = shown.axes.get(shown.ndim - 1 if shown.ndim == 3 or channels_last else 1)
    if units is None or shown.mixed(units):
        return None
    return next((n for n, space in enumerate(traced.spaces) if list(space.units) == units.tolist()), None)


def _owned(model: nn.Module, needed: Sequence[set[str]], open_: Collection[str]) -> list[list[str]]:
    """For each part, the modules and parameters that it needs. The last part also gets those that no part needs.

    A module is named as a whole if one part alone needs it, unless it is one of `open_`.
    """
    state = model.state_dict()
    counts = Counter(name for names in needed for name in names)
    modules = [path for path, _ in model.named_modules() if path and path not in open_]
    inside = {path: [name for name in state if name.startswith(f"{path}.")] for path in modules}
    unread = {name for name in state if name not in counts}
    mine = [{name for name in names if name in state} for names in needed]
    for name in unread:  # counters of shared norms go where the norms go
        sharing = [names for names in mine if any(_owner(other) == _owner(name) for other in names)]
        for names in sharing or mine[-1:]:
            names.add(name)
    tops = []
    for names in mine:
        alone = {name for name in names if counts[name] < 2} | unread
        whole = {path for path, held in inside.items() if alone.issuperset(held) and not names.isdisjoint(held)}
        tops.append([path for path in inside if path in whole and path.rpartition(".")[0] not in whole])
    mine[-1] -= {name for name in unread if any(_under(name, top) for top in tops[:-1])}
    beside = [sorted(name for name in names if not _under(name, top)) for names, top in zip(mine, tops, strict=True)]
    return [[*top, *names] for top, names in zip(tops, beside, strict=True)]


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _under(name: str, paths: Iterable[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)

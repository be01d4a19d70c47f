# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Run a part of a model's own forward, from one module's output to another's. Copied into merged repositories.

A part calls the forward of the whole model. In it, the module at the start returns the given value, and the modules of
other parts return zeros of the right shape, which nothing reads. What does not depend on the image (masks, rotary
tables, sizes) is computed where it is needed.
"""

import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .resume import around, empty

_lock = threading.Lock()  # held while an outline finds shapes
PIXELS = "$pixels"  # where the first part starts
Shapes = dict[
    str, Any
]  # path of a module -> its output for one image, on the meta device; in the order in which they end


class Outline:
    """The shapes of the outputs of a model's modules.

    >>> outline = Outline(model, {"layers.0": ["layers.0"], "call:forward": ["head"]})  # doctest: +SKIP
    >>> outline.shapes((224, 224))["layers.0"].shape  # doctest: +SKIP
    torch.Size([1, 197, 768])
    """

    def __init__(self, net: nn.Module, owns: Mapping[str, Sequence[str]]) -> None:
        """Copy the model to the meta device.

        Args:
            net: the model.
            owns: the modules and parameters that each part needs. A module that one part alone needs is replaced in
                the others.
        """
        tensors = [*net.parameters(), *net.buffers()]
        meta = {
            id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors
        }
        self.net = copy.deepcopy(net, meta)
        counts = Counter(name for names in owns.values() for name in names)
        modules = dict(net.named_modules())
        self.paths = [name for name, count in counts.items() if count == 1 and name in modules]
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)
        self.channels = 3
        self.known: dict[tuple[int, ...], Shapes] = {}

    def watch(self, net: nn.Module) -> nn.Module:
        """Prepare a model, in place, for `run_part`. Outside of it, the model works as before."""
        modules = dict(net.named_modules())
        for path in self.paths:
            if not isinstance(modules[path].forward, Watched):
                _watch(modules[path], path)
        return net

    def shapes(self, size: Sequence[int]) -> Shapes:
        """The outputs of all modules for one image of a size (height, width)."""
        key = (self.channels, *size)
        with _lock:
            if key not in self.known:
                self.known[key] = self._find(key)
        return self.known[key]

    def _find(self, key: tuple[int, ...]) -> Shapes:
        """The outputs for one image of a size (channels, height, width)."""
        found: Shapes = {}
        modules = dict(self.net.named_modules())
        hooks = [
            modules[path].register_forward_hook(lambda _, __, out, path=path: found.setdefault(path, out))
            for path in self.paths
        ]
        try:
            with _disable_current_modes(), torch.no_grad():
                self.net(torch.empty(1, *key, device="meta", dtype=self.dtype))
        finally:
            for hook in hooks:
                hook.remove()
        return found


@dataclass(frozen=True)
class _Part:
    first: str
    value: Tensor
    last: str | None
    shapes: Shapes
    others: frozenset[str]  # modules of other parts
    images: int
    result: list[Tensor] = field(default_factory=list)

    def blank(self, path: str) -> Any:
        """The output of a module, with zeros for its values, which the code around it may write to."""

        def zeros(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            kind = self.value.dtype if leaf.is_floating_point() else leaf.dtype
            shape = (leaf.shape[0] * self.images, *leaf.shape[1:]) if leaf.ndim else ()
            return torch.zeros(shape, dtype=kind, device=self.value.device)

        return tree_map(zeros, self.shapes[path])


_running: ContextVar[_Part | None] = ContextVar("the part of a forward pass that runs", default=None)


class Watched:
    """Replaces a module's `forward`.

    Args:
        path: path of the module.
        forward: its own forward.
    """

    def __init__(self, path: str, forward: Callable[..., Any]) -> None:
        self.path = path
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the module, if the running part needs it; outside of parts, that of its own forward."""
        part = _running.get()
        if part is None:
            return self.forward(*args, **kwargs)
        if self.path in part.others:
            out = part.blank(self.path)
            return _with_first(out, part.value.clone()) if self.path == part.first else out  # it may be written to
        out = self.forward(*args, **kwargs)
        if self.path == part.last:
            part.result.append(_first(out).clone())  # code behind the part may write to it
        return out


class _Replicate:
    """Replaces the method with which `nn.DataParallel` copies a module: the copy runs its own forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self) -> nn.Module:
        replica: nn.Module = type(self.module)._replicate_for_data_parallel(self.module)  # type: ignore[no-untyped-call]
        path = vars(self.module)["forward"].path
        for name in ("forward", "_replicate_for_data_parallel"):
            del vars(replica)[name]
        return _watch(replica, path)


def _watch(module: nn.Module, path: str) -> nn.Module:
    """Replace the forward of a module, in place."""
    vars(module)["forward"] = Watched(path, module.forward)
    vars(module)["_replicate_for_data_parallel"] = _Replicate(module)
    return module


def run_part(
    net: nn.Module, outline: Outline, first: str, last: str | None, value: Tensor, size: Sequence[int]
) -> Tensor:
    """Run the part of a forward pass between two modules.

    Args:
        net: a model prepared by the outline.
        outline: of the model.
        first: the module whose output is `value`; `PIXELS` if `value` holds the images.
        last: the module whose output is returned; `None` for the output of the model.
        value: what the part starts with.
        size: (height, width) of the images.

    Returns:
        The output of the last module, or the logits of the model.

    Raises:
        ValueError: the model does not call one of the two modules, or not in this pass.
    """
    if first == PIXELS:
        outline.channels = value.shape[1]
    shapes = outline.shapes(size)
    unknown = [path for path in (first, last) if path not in (PIXELS, None, *shapes)]
    if unknown:
        raise ValueError(f"the model does not call {unknown[0]}")
    order = list(shapes)
    start = 0 if first == PIXELS else order.index(first) + 1
    end = len(order) if last is None else order.index(last) + 1
    above = {outer for path in order[max(start - 1, 0) : end] for outer in around(path)}
    others = frozenset([*order[:start], *order[end:]]) - above  # a module around the part runs in it
    rows = 1 if first == PIXELS else _first(shapes[first]).shape[0]  # of one image: windows are many
    images = value.shape[0] // rows if rows > 1 else value.shape[0]
    part = _Part(first, value, last, shapes, others, images)
    pixels = value if first == PIXELS else value.new_zeros(()).expand(images, outline.channels, *size)
    token = _running.set(part)
    try:
        out = net(pixels)
    except Exception:
        if not part.result:
            raise
        return part.result[0]  # code behind the part may not take its width
    finally:
        _running.reset(token)
    if last is not None and not part.result:
        raise ValueError(f"the model has not called {last}: a merge with a cut cannot leave out layers at random")
    if last is not None:
        return part.result[0]
    return out["logits"] if isinstance(out, Mapping) and "logits" in out else _first(out)


def keep_only(net: nn.Module, kept: Iterable[str], others: Iterable[str]) -> nn.Module:
    """Remove from a model, in place, the weights that only other parts need.

    Modules lose their weights. Parameters beside them become zeros that are never saved, because code that runs in
    every part may use them for results that nothing reads. A batch norm that several parts need keeps its statistics
    as they are.

    Args:
        net: the model.
        kept: the modules and parameters that the part needs.
        others: those that the other parts need.
    """
    modules = dict(net.named_modules())
    kept, others = set(kept), set(others)
    for name in kept & others:  # other parts run these norms on zeros, which are not to count
        owner = modules.get(name.rpartition(".")[0])
        if isinstance(owner, nn.modules.batchnorm._BatchNorm):
            owner.track_running_stats = False
    for name in others - kept:
        path, _, leaf = name.rpartition(".")
        if name in modules:
            setattr(modules[name], "elsewhere", True)  # noqa: B010
            for inner in modules[name].modules():
                empty(inner)
        elif path in modules and isinstance(value := getattr(modules[path], leaf, None), Tensor):
            modules[path]._parameters.pop(leaf, None)
            modules[path]._buffers.pop(leaf, None)
            modules[path].register_buffer(leaf, torch.zeros_like(value), persistent=False)
            if isinstance(modules[path], nn.modules.batchnorm._BatchNorm):
                modules[path].track_running_stats = False  # a norm without statistics has none to load
    return net


def held_modules(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a part by path, without those whose weights `keep_only` has removed."""
    modules = dict(net.named_modules())
    elsewhere = tuple(f"{path}." for path, module in modules.items() if "elsewhere" in vars(module))
    return {path: module for path, module in modules.items() if not f"{path}.".startswith(elsewhere)}


def _first(out: Any) -> Tensor:
    """The first tensor of an output."""
    found: Tensor = next(leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor))
    return found


def _with_first(out: Any, value: Tensor) -> Any:
    """An output with a value for its first tensor."""
    leaves, structure = tree_flatten(out)
    place = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor))
    return tree_unflatten([*leaves[:place], value, *leaves[place + 1 :]], structure)

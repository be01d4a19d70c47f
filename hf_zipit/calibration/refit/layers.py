"""Which layers of a model can be refit, found by watching one forward pass: what each reads, and where its output goes.

A layer is a linear map (`F.linear`, `F.conv2d`) with the affine maps that follow it directly: a batch norm, a layer
scale. A batch norm that follows none (as in residual networks with pre-activation) is a layer as well. Where the output
of a layer does nothing but enter a sum (a residual branch), it answers for that sum.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ADDS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__"})


@dataclass(frozen=True)
class Part:
    """A linear layer or convolution, and the batch norm and layer scale (parameter) behind it.

    A batch norm that follows none is a part of its own: a map of every channel by itself.
    """

    module: str
    norm: str | None = None
    scale: str | None = None

    @property
    def alone(self) -> bool:
        """Whether it is a batch norm and nothing else."""
        return self.module == self.norm


@dataclass(frozen=True)
class Layer:
    """Parts that are refit together because their outputs are added to each other.

    `added`: what is observed is the sum that the output enters, a residual stream, and not the output itself.
    """

    parts: tuple[Part, ...]
    added: bool = False


class Places:
    """Where the linear maps, batch norms and scales of a network are, found by the identity of their tensors."""

    def __init__(self, net: nn.Module) -> None:
        self.linear: dict[int, str] = {}
        self.norms: dict[int, str] = {}
        self.scales: dict[int, str] = {}
        for path, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                self.linear[id(module.weight)] = path
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats:
                self.norms[id(module.running_mean)] = path
            else:
                own = {f"{path}.{n}" if path else n: p for n, p in module.named_parameters(recurse=False)}
                self.scales.update({id(p): name for name, p in own.items() if p.ndim == 1})

    def called(self, name: str, args: Sequence[Any]) -> Part | None:
        """The linear map, or the batch norm, that a function call applies."""
        if len(args) < 2:
            return None
        if name == "batch_norm":
            norm = self.norms.get(id(args[1]))
            return None if norm is None else Part(norm, norm)
        path = self.linear.get(id(args[1])) if name in ("conv2d", "linear") else None
        return None if path is None else Part(path)

    def follows(self, name: str, args: Sequence[Any], value: Tensor, part: Part) -> Part | None:
        """The part with the affine map that a call applies to its output, if it applies one."""
        if part.alone:
            return None
        if name == "batch_norm" and len(args) > 1 and args[0] is value and part.norm is None and part.scale is None:
            norm = self.norms.get(id(args[1]))
            return None if norm is None else replace(part, norm=norm)
        if name in PRODUCTS and part.scale is None:
            scale = next((self.scales[id(a)] for a in args if id(a) in self.scales), None)
            fits = value.shape[-1:] == next((a.shape for a in args if id(a) in self.scales), None)
            return replace(part, scale=scale) if scale is not None and fits else None
        return None


@dataclass(frozen=True)
class Group:
    """Layers that read the same tensor, and the stages (first and last) in which they run."""

    layers: tuple[Layer, ...]
    first: int
    last: int


def find_layers(net: nn.Module, stages: Sequence[Callable[[Tensor], Tensor]], value: Tensor) -> list[Group]:
    """The layers of `net` that run when `value` passes the stages one after the other, in running order.

    Args:
        net: in eval mode.
        stages: functions whose composition is a forward pass of the net.
        value: what the first one reads; one image is enough.

    Layers that run more than once, or whose weight is not used as it is, are left out.
    """
    with torch.no_grad(), _Watch(Places(net)) as watch:
        for stage in stages:
            value = stage(value)
            watch.stage += 1
    runs = Counter(entry.part.module for entry in watch.entries)
    once = [entry for entry in watch.entries if runs[entry.part.module] == 1]
    groups: list[Group] = []
    before: _Entry | None = None
    for entry in once:
        added = entry.sum is not None and entry.uses == 1
        mates = [e for e in once if added and e.sum == entry.sum and e.uses == 1 and not e.grouped]
        if entry.grouped or not mates:
            mates = [entry]
        if entry is not mates[-1]:
            continue
        layer = Layer(tuple(e.part for e in mates), added)
        first, last = min(e.first for e in mates), max(e.last for e in mates)
        if before is not None and before.read is entry.read and len(mates) == 1:
            groups[-1] = Group((*groups[-1].layers, layer), first, max(last, groups[-1].last))
        else:
            groups.append(Group((layer,), first, last))
        before = entry if len(mates) == 1 else None
    return groups


@dataclass
class _Entry:
    """A linear map that ran: its output so far, and what became of it."""

    part: Part
    read: Tensor
    value: Tensor | None
    grouped: bool
    first: int
    last: int
    uses: int = 0
    sum: int | None = None  # the number of the addition it entered


@dataclass
class _Watch(TorchFunctionMode):
    """Follows the output of every linear map until something else than an affine map uses it."""

    places: Places
    entries: list[_Entry] = field(default_factory=list)
    stage: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [a for x in (*args, *(kwargs or {}).values()) for a in (x if isinstance(x, list | tuple) else (x,))]
        users = [e for e in self.entries if e.value is not None and any(a is e.value for a in given)]
        versions = [e.value._version for e in users if e.value is not None]
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(r, Tensor) for r in (result if isinstance(result, list | tuple) else (result,))):
            return result  # a shape, a dtype
        self.calls += 1
        name = func.__name__
        for entry, version in zip(users, versions, strict=True):
            self._use(entry, name, args, result, version)
        part = self.places.called(name, args)
        if part is not None and not any(entry.part.norm == part.norm for entry in users if part.norm):
            grouped = part.alone or (name == "conv2d" and len(args) > 6 and args[6] != 1)
            self.entries.append(_Entry(part, args[0], result, grouped, self.stage, self.stage))
        return result

    def _use(self, entry: _Entry, name: str, args: tuple[Any, ...], result: Any, version: int) -> None:
        value = entry.value
        assert value is not None
        if result is value and value._version == version:
            return  # a dropout in eval mode hands on what it got
        extended = self.places.follows(name, args, value, entry.part) if not entry.uses else None
        if extended is not None:
            entry.part, entry.value, entry.last = extended, result, self.stage
            return
        entry.uses += 1
        if name in ADDS and len(args) == 2 and all(isinstance(a, Tensor) and a.shape == value.shape for a in args):
            entry.sum, entry.last = self.calls, self.stage
        if result is value:
            entry.value = None  # overwritten

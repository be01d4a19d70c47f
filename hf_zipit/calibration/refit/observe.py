"""What a layer reads and where its output goes, as samples, during a forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hf_zipit.calibration.refit.layers import ADDS, Layer, Part, Places

POSITIONS = 64  # of a larger feature map an even lattice of at most this many positions per image is read


@dataclass(eq=False)
class _Running:
    """An output on its way through the affine maps behind a part, to the sum it enters."""

    layer: Layer
    part: Part  # as far as it has run
    value: Tensor


class Observer(TorchFunctionMode):
    """Reads the inputs and the sites of some layers while a network runs.

    `inputs[layer]` is `(B, P, groups, d)`: what one group of output units reads, the parts side by side.
    `sites[layer]` is `(B, P, units)`: the output behind the affine maps, or the sum it enters.

    >>> with Observer(net, layers) as seen:  # doctest: +SKIP
    ...     net(pixels)
    >>> seen.sites[layers[0]].shape  # doctest: +SKIP
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer], inputs: bool = True) -> None:
        super().__init__()
        self.places, self.reads = Places(net), inputs
        self.wanted = {part.module: (layer, part) for layer in layers for part in layer.parts}
        linear = (path for path in self.wanted if isinstance(net.get_submodule(path), nn.Linear))
        self.maps = set(self.wanted).difference(linear)  # their units are on axis 1
        self.columns: dict[str, Tensor] = {}
        self.sites: dict[Layer, Tensor] = {}
        self.running: list[_Running] = []

    @property
    def inputs(self) -> dict[Layer, Tensor]:
        """What each layer reads."""
        layers = dict.fromkeys(layer for layer, _ in self.wanted.values())
        return {layer: _beside([self.columns[part.module] for part in layer.parts]) for layer in layers}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        part = self.places.called(name, args)
        part = part if part is not None and part.module in self.wanted else None
        if part is not None and self.reads:
            self.columns[part.module] = _read(name, args)
        running = [entry for entry in self.running if any(a is entry.value for a in args)]
        result = func(*args, **(kwargs or {}))
        for entry in running:
            self._follow(entry, name, args, result)
        if part is not None:
            self._arrive(_Running(self.wanted[part.module][0], part, result))
        return result

    def _follow(self, entry: _Running, name: str, args: Sequence[Any], result: Any) -> None:
        part = self.places.follows(name, args, entry.value, entry.part)
        if part is not None:
            self.running.remove(entry)
            self._arrive(_Running(entry.layer, part, result))
        elif name in ADDS and isinstance(result, Tensor):
            self.running = [other for other in self.running if other.layer is not entry.layer]
            self._keep(entry, result)

    def _arrive(self, entry: _Running) -> None:
        done = entry.part == self.wanted[entry.part.module][1]
        if done and not entry.layer.added:
            self._keep(entry, entry.value)
        else:
            self.running.append(entry)

    def _keep(self, entry: _Running, site: Tensor) -> None:
        maps = entry.part.module in self.maps
        self.sites[entry.layer] = lattice(site.movedim(1, -1) if maps else site).clone()


def _read(name: str, args: Sequence[Any]) -> Tensor:
    """What a convolution, a linear layer or a batch norm reads, `(B, P, groups, d)`."""
    if name == "conv2d":
        return columns(*args)
    if name == "linear":
        return lattice(args[0])[:, :, None].clone()
    return lattice(args[0].movedim(1, -1))[..., None].clone()


def lattice(values: Tensor) -> Tensor:
    """`(B, ..., units)` -> `(B, P, units)`; of a large map an even lattice of positions."""
    if values.ndim == 4:
        start, step = _step(*values.shape[1:3])
        values = values[:, start::step, start::step]
    return values.flatten(1, -2) if values.ndim > 2 else values[:, None]


def _step(height: int, width: int) -> tuple[int, int]:
    step = 1
    while -(-height // step) * -(-width // step) > POSITIONS:
        step += 1
    return (step - 1) // 2, step


def columns(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The patches that a 2-d convolution reads at the lattice of its output: `(B, P, groups, d)`.

    The arguments are those of `conv2d`; `d` runs over `weight.shape[1:]`.
    """
    kernel = weight.shape[2:]
    stride, dilation = _pair(stride), _pair(dilation)
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if padding == "same":
        (top, bottom), (left, right) = ((span // 2, span - span // 2) for span in spans)
    else:
        (top, bottom), (left, right) = ((p, p) for p in _pair(0 if padding == "valid" else padding))
    x = functional.pad(x, (left, right, top, bottom))
    windows = x.unfold(2, spans[0] + 1, stride[0]).unfold(3, spans[1] + 1, stride[1])  # (B, C, H, W, span, span)
    start, step = _step(*windows.shape[2:4])
    windows = windows[:, :, start::step, start::step, :: dilation[0], :: dilation[1]]
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, groups, weight[0].numel())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _beside(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), -1)

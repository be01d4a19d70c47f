"""What layers read and put out during a forward pass, as samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_zipit.calibration.refit.follow import ADDITIONS, AffineMap, AffineParameters, Call, Output, OutputFollower
from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.statistics.lattice import lattice

POSITIONS = 64  # a feature map with more positions is read on an even lattice of at most so many per image


@dataclass(eq=False)
class _LayerOutput(Output):
    """An output on its way through norm and scale to the sum it enters."""

    layer: Layer


class _AllSeen(Exception):
    """All layers have run."""


class LayerObserver(OutputFollower[_LayerOutput]):
    """Reads the inputs and outputs of some layers while a network runs.

    A layer may read windows, with more entries on its first axis than there are images. The windows of an image are
    then taken as more positions of it; they must be consecutive.

    Args:
        net: the network.
        layers: those of its layers that are read.
        images: the number of images, B; `None` if no layer reads windows.
        inputs: whether to read inputs as well as outputs.
        stop: whether to end the block as soon as all layers have run.
        parameters: those of the network, if they are known.

    Attributes:
        inputs: for each layer `(B, P, groups, d)`: what one group of its output units reads, maps side by side.
        results: for each layer `(B, P, units)`: the output behind norm and scale, or the sum it enters.

    >>> with LayerObserver(net, layers) as seen:  # doctest: +SKIP
    ...     net(pixels)
    >>> seen.results[layers[0]].shape  # doctest: +SKIP
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Sequence[Layer],
        images: int | None = None,
        inputs: bool = True,
        stop: bool = False,
        parameters: AffineParameters | None = None,
    ) -> None:
        super().__init__(net, parameters)
        self.stop = stop
        self.images = images
        self.keep_inputs = inputs
        self.layers = {affine.module: layer for layer in layers for affine in layer.maps}
        self.maps = {affine.module: affine for layer in layers for affine in layer.maps}
        linear = (path for path in self.maps if isinstance(net.get_submodule(path), nn.Linear))
        self.channels_first = set(self.maps).difference(linear)  # their units are on axis 1
        self.columns: dict[str, Tensor] = {}
        self.results: dict[Layer, Tensor] = {}

    @property
    def inputs(self) -> dict[Layer, Tensor]:
        """What each layer reads."""
        layers = dict.fromkeys(self.layers.values())
        return {layer: _side_by_side([self.columns[affine.module] for affine in layer.maps]) for layer in layers}

    def on_map_input(self, affine: AffineMap, function: str, args: tuple[Any, ...]) -> None:
        """Keep what a map is about to read."""
        if self.keep_inputs and affine.module in self.maps:
            self.columns[affine.module] = self._by_image(_samples_read(function, args))

    def on_read(self, output: _LayerOutput, call: Call, version: int) -> None:
        """Follow an output through norm and scale, and keep the sum that it enters."""
        if output not in self.outputs or output.value is None:
            return  # the sum was kept for another output of the same layer
        extended = self.parameters.extended(call.function, call.args, output.value, output.affine)
        if extended is not None:
            self.outputs.remove(output)
            self._follow(_LayerOutput(extended, call.result, output.layer))
        elif call.function in ADDITIONS:
            self.outputs = [other for other in self.outputs if other.layer is not output.layer]
            self.keep(output.layer, output.affine.module, call.result)

    def on_map(self, affine: AffineMap, call: Call, read: Sequence[_LayerOutput]) -> None:
        """Begin to follow the output of a map."""
        if affine.module in self.maps:
            self._follow(_LayerOutput(affine, call.result, self.layers[affine.module]))

    def _follow(self, output: _LayerOutput) -> None:
        complete = output.affine == self.maps[output.affine.module]
        if complete and not output.layer.added and output.value is not None:
            self.keep(output.layer, output.affine.module, output.value)
        else:
            self.outputs.append(output)

    def keep(self, layer: Layer, path: str, result: Tensor) -> None:
        """Keep the result of a layer; `path` is that of its last map."""
        self.results[layer] = self.sampled(path, result).clone()
        if self.stop and len(self.results) == len(set(self.layers.values())):
            raise _AllSeen

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        """Leave the block; that all layers have run is no error."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        return kind is _AllSeen

    def sampled(self, path: str, result: Tensor) -> Tensor:
        """The result of a map as samples, `(B, P, units)`."""
        return self._by_image(samples(result.movedim(1, -1) if path in self.channels_first else result))

    def _by_image(self, values: Tensor) -> Tensor:
        """`(B * windows, P, ...)` -> `(B, windows * P, ...)`."""
        if self.images is None or self.images == len(values):
            return values
        return values.reshape(self.images, -1, *values.shape[2:])


def _samples_read(function: str, args: Sequence[Any]) -> Tensor:
    """What a convolution, a linear layer or a batch norm reads, `(B, P, groups, d)`."""
    if function == "conv2d":
        return columns(*args)
    if function == "linear":
        return samples(args[0])[:, :, None].clone()
    return samples(args[0].movedim(1, -1))[..., None].clone()


def samples(values: Tensor) -> Tensor:
    """`(B, ..., units)` -> `(B, P, units)`; a large feature map is read on an even lattice."""
    if values.ndim == 4:
        rows, cols = lattice(values.shape[1:3], POSITIONS)
        values = values[:, rows, cols]
    return values.flatten(1, -2) if values.ndim > 2 else values[:, None]


def columns(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """The patches that a 2-d convolution reads at the lattice of its output.

    The arguments are those of `conv2d`.

    Returns:
        `(B, P, groups, d)`, where `d` runs over `weight.shape[1:]`.
    """
    stride = _pair(stride)
    dilation = _pair(dilation)
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if padding == "same":
        (top, bottom), (left, right) = ((span // 2, span - span // 2) for span in spans)
    else:
        (top, bottom), (left, right) = ((p, p) for p in _pair(0 if padding == "valid" else padding))
    x = functional.pad(x, (left, right, top, bottom))
    windows = x.unfold(2, spans[0] + 1, stride[0]).unfold(3, spans[1] + 1, stride[1])  # (B, C, H, W, span, span)
    rows, cols = lattice(windows.shape[2:4], POSITIONS)
    windows = windows[:, :, rows, cols, :: dilation[0], :: dilation[1]]
    return windows.permute(0, 2, 3, 1, 4, 5).reshape(len(x), -1, groups, weight[0].numel())


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _side_by_side(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), -1)

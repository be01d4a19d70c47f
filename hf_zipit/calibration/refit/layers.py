"""Which layers of a model can be refit: what each reads and where its output goes, found in one forward pass.

A layer is a linear map (`F.linear`, `F.conv2d`) with the affine maps that follow it directly: a batch norm, a layer
scale. A batch norm that follows no layer, as in residual networks with pre-activation, is a layer as well. Where the
output of a layer only enters a sum (a residual branch), the layer is fitted to that sum.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.follow import ADDITIONS, AffineMap, Call, Output, OutputFollower


@dataclass(frozen=True)
class Layer:
    """Affine maps that are refit together because their outputs are added to each other.

    Attributes:
        maps: the affine maps.
        added: whether the observed output is the sum that the maps' outputs enter, a residual stream.
    """

    maps: tuple[AffineMap, ...]
    added: bool = False


@dataclass(frozen=True)
class LayerGroup:
    """Layers that read the same tensor, and the first and last stage in which they run."""

    layers: tuple[Layer, ...]
    first: int
    last: int


def find_layers(net: nn.Module, stages: Sequence[Callable[[Tensor], Tensor]], value: Tensor) -> list[LayerGroup]:
    """The layers of a network that can be refit, in running order.

    Layers that run more than once, whose weight is computed from other parameters, or that read nothing of the image
    (a table of positions) are left out. So are those behind a choice of the highest scores, as in some detectors.

    Args:
        net: the network, in eval mode.
        stages: functions whose composition is a forward pass of the net.
        value: what the first of them reads; one image is enough.
    """
    generator = torch.Generator().manual_seed(0)
    other = value + torch.randn(value.shape, generator=generator).to(value)
    mine, others = (_found(net, stages, one) for one in (value.clone(), other))
    runs = Counter(found.affine.module for found in mine)
    inputs = {found.affine.module: found.input for found in others}
    once = [
        found for found in mine if runs[found.affine.module] == 1 and _differ(found.input, inputs[found.affine.module])
    ]
    groups: list[LayerGroup] = []
    before: _FoundMap | None = None
    for found in once:
        added = found.sum is not None and found.uses == 1
        mates = [f for f in once if added and f.sum == found.sum and f.uses == 1 and not f.grouped]
        if found.grouped or not mates:
            mates = [found]
        if found is not mates[-1]:
            continue
        layer = Layer(tuple(mate.affine for mate in mates), added)
        first = min(mate.first for mate in mates)
        last = max(mate.last for mate in mates)
        if before is not None and before.input is found.input and len(mates) == 1:
            groups[-1] = LayerGroup((*groups[-1].layers, layer), first, max(last, groups[-1].last))
        else:
            groups.append(LayerGroup((layer,), first, last))
        before = found if len(mates) == 1 else None
    return groups


def _found(net: nn.Module, stages: Sequence[Callable[[Tensor], Tensor]], value: Tensor) -> list["_FoundMap"]:
    """Every affine map that runs in a forward pass, in running order."""
    with torch.no_grad(), _LayerFinder(net) as finder:
        for stage in stages:
            value = stage(value)
            finder.stage += 1
    out: list[_FoundMap] = finder.outputs
    return out


def _differ(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ; those without values are taken to."""
    return a.is_meta or not torch.equal(a, b)


@dataclass(eq=False)
class _FoundMap(Output):
    """An affine map that ran, its output so far, and what read that output.

    Attributes:
        input: what the map read.
        grouped: whether each of its outputs reads some of the input channels only.
        first, last: the stages in which it ran and its output was last extended or added.
        uses: the number of calls that read the output, other than a norm or scale.
        sum: the number of the call in which the output was added to a tensor of its shape.
    """

    input: Tensor
    grouped: bool
    first: int
    last: int
    uses: int = 0
    sum: int | None = None


class _LayerFinder(OutputFollower[_FoundMap]):
    """Collects every affine map that runs, and what reads its output."""

    stage = 0
    calls = 0
    chosen = False

    def on_call(self, function: str) -> None:
        self.calls += 1
        self.chosen |= function == "topk"

    def on_read(self, output: _FoundMap, call: Call, version: int) -> None:
        value = output.value
        assert value is not None
        if call.result is value and value._version == version:
            return  # a dropout in eval mode returns its input
        extended = None
        if not output.uses:
            extended = self.parameters.extended(call.function, call.args, value, output.affine)
        if extended is not None:
            output.affine = extended
            output.value = call.result
            output.last = self.stage
            return
        output.uses += 1
        same_shape = all(isinstance(a, Tensor) and a.shape == value.shape for a in call.args)
        if call.function in ADDITIONS and len(call.args) == 2 and same_shape:
            output.sum = self.calls
            output.last = self.stage
        if call.result is value:
            output.value = None  # overwritten

    def on_map(self, affine: AffineMap, call: Call, read: Sequence[_FoundMap]) -> None:
        if self.chosen:
            return  # it reads the places with the highest scores, which are others in each network
        if any(output.affine.norm == affine.norm for output in read if affine.norm):
            return  # a batch norm that has just extended the map before it
        grouped = affine.norm_only or (call.function == "conv2d" and len(call.args) > 6 and call.args[6] != 1)
        self.outputs.append(_FoundMap(affine, call.result, call.args[0], grouped, self.stage, self.stage))

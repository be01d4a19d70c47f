"""A layer of the merged model as one affine map, and writing a changed map into its parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.follow import AffineMap
from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.calibration.refit.normal_equations import NormalEquations

Regression = NormalEquations | Samples


def module_at(net: nn.Module, path: str) -> Any:
    """The layer or norm with this path."""
    return net.get_submodule(path)


class FoldedLayer:
    """A layer as `W x + b`, with its batch norms and layer scales folded in.

    Attributes:
        weight: `(G, m, d)` for G groups of m outputs with d inputs each; the inputs of the maps side by side.
        groups: G; 1 but for grouped convolutions.
        outputs: the number of all outputs, G * m.
        sizes: how many of the d inputs belong to each map.
    """

    def __init__(self, net: nn.Module, layer: Layer) -> None:
        self.net = net
        self.layer = layer
        first = module_at(net, layer.maps[0].module)
        self.groups = int(getattr(first, "groups", 1))
        self.outputs = int(first.weight.shape[0])
        self.sizes = [module_at(net, affine.module).weight[0].numel() for affine in layer.maps]
        weights = [self._raw(affine) * self._scale(affine)[:, None] for affine in layer.maps]
        self.weight = torch.cat([self._grouped(weight) for weight in weights], -1)

    @property
    def intercept(self) -> bool:
        """Whether a map has a parameter that can hold a constant."""
        return any(a.norm or module_at(self.net, a.module).bias is not None for a in self.layer.maps)

    @property
    def normed(self) -> bool:
        """Whether a map has a batch norm."""
        return any(affine.norm for affine in self.layer.maps)

    def reset(self, equations: Regression) -> Tensor:
        """The weights with the statistics of every batch norm re-estimated on these samples, `(G, m, d)`."""
        weights = []
        for (affine, start), size in zip(self._starts(), self.sizes, strict=True):
            weight = self.weight[..., start : start + size]
            if affine.norm:
                norm = module_at(self.net, affine.norm)
                _, variance = equations.moments(self._grouped(self._raw(affine)), start)
                ratio = ((norm.running_var + norm.eps) / (variance.flatten() + norm.eps)).sqrt()
                weight = weight * self._grouped(ratio[:, None])
            weights.append(weight)
        return torch.cat(weights, -1)

    def write(self, change: Tensor, shift: Tensor, equations: Regression) -> None:
        """Add `change (G, m, d)` to the weights and `shift (G, m)` to the constant.

        A batch norm gets the mean and variance that its new input has on these samples, so that re-estimating them
        changes nothing. A layer scale becomes 1.
        """
        rest = shift.reshape(-1)
        for (affine, start), size in zip(self._starts(), self.sizes, strict=True):
            module = module_at(self.net, affine.module)
            constant = self._constant(affine)
            folded = (self.weight + change)[..., start : start + size]
            if affine.norm is not None or module.bias is not None:
                constant = constant + rest
                rest = torch.zeros_like(rest)
            module.weight.data.copy_(folded.reshape(module.weight.shape))
            if affine.scale:
                self.net.get_parameter(affine.scale).data.fill_(1)
            if affine.norm:
                mean, variance = (value.flatten() for value in equations.moments(folded, start))
                norm = module_at(self.net, affine.norm)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.weight.data.copy_((variance + norm.eps).sqrt())
                norm.bias.data.copy_(constant + mean)
                constant = torch.zeros_like(constant)
            if module.bias is not None:
                module.bias.data.copy_(constant)

    def _starts(self) -> list[tuple[AffineMap, int]]:
        """Every map, and where its inputs begin."""
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return list(zip(self.layer.maps, starts, strict=True))

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, -1, weight.shape[-1])

    def _raw(self, affine: AffineMap) -> Tensor:
        """The weight of the linear map alone, `(outputs, d)`."""
        weight: Tensor = module_at(self.net, affine.module).weight
        return weight.detach().double().flatten(1)

    def _scale(self, affine: AffineMap) -> Tensor:
        """What norm and layer scale multiply the map's output by, `(outputs,)`."""
        scale = torch.ones(self.outputs, dtype=torch.float64, device=self._raw(affine).device)
        if affine.norm:
            norm = module_at(self.net, affine.norm)
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale * self.net.get_parameter(affine.scale).detach().double() if affine.scale else scale

    def _constant(self, affine: AffineMap) -> Tensor:
        """The constant that the map adds, `(outputs,)`."""
        bias: Tensor | None = module_at(self.net, affine.module).bias
        scale = self._scale(affine)
        constant = torch.zeros_like(scale) if bias is None else bias.detach().double() * scale
        if affine.norm:
            norm = module_at(self.net, affine.norm)
            gain = self.net.get_parameter(affine.scale).detach().double() if affine.scale else 1.0
            constant += norm.bias.detach().double() * gain - norm.running_mean.double() * scale
        return constant


class FoldedNorm:
    """A batch norm that follows no layer, as `w x + b` for each channel.

    Attributes:
        weight: the slopes, `(channels, 1, 1)`: every channel is a group of one input and one output.
        groups: the number of channels.
    """

    intercept = True
    normed = True

    def __init__(self, net: nn.Module, layer: Layer) -> None:
        self.net = net
        self.layer = layer
        self.norm = module_at(net, layer.maps[0].module)
        weight = self.norm.weight.detach().double() / (self.norm.running_var.double() + self.norm.eps).sqrt()
        self.groups = len(weight)
        self.weight = weight[:, None, None]

    def reset(self, equations: Regression) -> Tensor:
        """The slopes with the norm's statistics re-estimated on these samples, `(channels, 1, 1)`."""
        _, variance = equations.moments(torch.ones_like(self.weight))
        norm = self.norm
        ratio = (norm.running_var.double()[:, None] + norm.eps) / (variance + norm.eps)
        weight: Tensor = self.weight * ratio.sqrt()[:, None]
        return weight

    def write(self, change: Tensor, shift: Tensor, equations: Regression) -> None:
        """Add `change (channels, 1, 1)` to the slopes and `shift (channels, 1)` to the constants.

        The norm gets the mean and variance of what it reads.
        """
        norm = self.norm
        slope = (self.weight + change).flatten()
        constant = norm.bias.detach().double() - norm.running_mean.double() * self.weight.flatten() + shift.flatten()
        mean, variance = (value.flatten() for value in equations.moments(torch.ones_like(self.weight)))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.data.copy_(slope * (variance + norm.eps).sqrt())
        norm.bias.data.copy_(constant + slope * mean)


def fold_layer(net: nn.Module, layer: Layer) -> FoldedLayer | FoldedNorm:
    """A layer as one affine map that can be changed."""
    return FoldedNorm(net, layer) if layer.maps[0].norm_only else FoldedLayer(net, layer)

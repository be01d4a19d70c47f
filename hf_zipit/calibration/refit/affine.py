"""The affine map that a layer of the merged model is, and writing another one into its parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.layers import Layer, Part
from hf_zipit.calibration.refit.normal_equations import NormalEquations

Regression = NormalEquations | Samples


def module_at(net: nn.Module, path: str) -> Any:
    """The layer or norm with this path."""
    return net.get_submodule(path)


class Folded:
    """A layer as `W x + b`, with its batch norms and layer scales folded in, and how it can be changed.

    `weight (G, m, d)` holds the parts side by side.
    """

    def __init__(self, net: nn.Module, layer: Layer) -> None:
        self.net, self.layer = net, layer
        first = module_at(net, layer.parts[0].module)
        self.groups = int(getattr(first, "groups", 1))
        self.outputs = int(first.weight.shape[0])
        self.sizes = [module_at(net, part.module).weight[0].numel() for part in layer.parts]
        self.weight = torch.cat([self._grouped(self._raw(p) * self._scale(p)[:, None]) for p in layer.parts], -1)

    @property
    def intercept(self) -> bool:
        """Whether a part has a parameter that can hold a constant."""
        modules = [module_at(self.net, part.module) for part in self.layer.parts]
        return any(p.norm or m.bias is not None for p, m in zip(self.layer.parts, modules, strict=True))

    @property
    def normed(self) -> bool:
        """Whether a part has a batch norm."""
        return any(part.norm for part in self.layer.parts)

    def reset(self, equations: Regression) -> Tensor:
        """The weights if every batch norm took its statistics from these samples, `(G, m, d)`."""
        weights = []
        for (part, start), size in zip(self._starts(), self.sizes, strict=True):
            weight = self.weight[..., start : start + size]
            if part.norm:
                norm = module_at(self.net, part.norm)
                _, variance = equations.moments(self._grouped(self._raw(part)), start)
                ratio = ((norm.running_var + norm.eps) / (variance.flatten() + norm.eps)).sqrt()
                weight = weight * self._grouped(ratio[:, None])
            weights.append(weight)
        return torch.cat(weights, -1)

    def write(self, change: Tensor, shift: Tensor, equations: Regression) -> None:
        """Add `change (G, m, d)` to the weights and `shift (G, m)` to the constant.

        A batch norm gets the mean and variance that its new input has on these samples, so that estimating them
        again changes nothing; a layer scale becomes 1.
        """
        rest = shift.reshape(-1)
        for (part, start), size in zip(self._starts(), self.sizes, strict=True):
            module = module_at(self.net, part.module)
            constant = self._constant(part)
            folded = (self.weight + change)[..., start : start + size]
            holds = part.norm is not None or module.bias is not None
            if holds:
                constant, rest = constant + rest, torch.zeros_like(rest)
            module.weight.data.copy_(folded.reshape(module.weight.shape))
            if part.scale:
                self.net.get_parameter(part.scale).data.fill_(1)
            if part.norm:
                mean, variance = (value.flatten() for value in equations.moments(folded, start))
                norm = module_at(self.net, part.norm)
                norm.running_mean.copy_(mean)
                norm.running_var.copy_(variance)
                norm.weight.data.copy_((variance + norm.eps).sqrt())
                norm.bias.data.copy_(constant + mean)
                constant = torch.zeros_like(constant)
            if module.bias is not None:
                module.bias.data.copy_(constant)

    def _starts(self) -> list[tuple[Part, int]]:
        starts = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        return list(zip(self.layer.parts, starts, strict=True))

    def _grouped(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, -1, weight.shape[-1])

    def _raw(self, part: Part) -> Tensor:
        """The weight of the linear map alone, `(m, d)`."""
        weight: Tensor = module_at(self.net, part.module).weight
        return weight.detach().double().flatten(1)

    def _scale(self, part: Part) -> Tensor:
        """What the part's output is multiplied with, `(m,)`."""
        scale = torch.ones(self.outputs, dtype=torch.float64, device=self._raw(part).device)
        if part.norm:
            norm = module_at(self.net, part.norm)
            scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        return scale * self.net.get_parameter(part.scale).detach().double() if part.scale else scale

    def _constant(self, part: Part) -> Tensor:
        """The constant that the part adds, `(m,)`."""
        bias: Tensor | None = module_at(self.net, part.module).bias
        scale = self._scale(part)
        constant = torch.zeros_like(scale) if bias is None else bias.detach().double() * scale
        if part.norm:
            norm = module_at(self.net, part.norm)
            gain = self.net.get_parameter(part.scale).detach().double() if part.scale else 1.0
            constant += norm.bias.detach().double() * gain - norm.running_mean.double() * scale
        return constant


class FoldedNorm:
    """A batch norm that follows no layer, as `w x + b` for each channel: `weight (channels, 1, 1)`."""

    intercept = normed = True

    def __init__(self, net: nn.Module, layer: Layer) -> None:
        self.net, self.layer = net, layer
        self.norm = module_at(net, layer.parts[0].module)
        weight = self.norm.weight.detach().double() / (self.norm.running_var.double() + self.norm.eps).sqrt()
        self.groups, self.weight = len(weight), weight[:, None, None]

    def reset(self, equations: Regression) -> Tensor:
        """The weights if it took its statistics from these samples."""
        _, variance = equations.moments(torch.ones_like(self.weight))
        norm = self.norm
        ratio = (norm.running_var.double()[:, None] + norm.eps) / (variance + norm.eps)
        weight: Tensor = self.weight * ratio.sqrt()[:, None]
        return weight

    def write(self, change: Tensor, shift: Tensor, equations: Regression) -> None:
        """Add `change (channels, 1, 1)` to the slopes and `shift (channels, 1)` to the constants.

        The norm gets the mean and variance of what it reads.
        """
        norm, slope = self.norm, (self.weight + change).flatten()
        constant = norm.bias.detach().double() - norm.running_mean.double() * self.weight.flatten() + shift.flatten()
        mean, variance = (value.flatten() for value in equations.moments(torch.ones_like(self.weight)))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.data.copy_(slope * (variance + norm.eps).sqrt())
        norm.bias.data.copy_(constant + slope * mean)


def fold(net: nn.Module, layer: Layer) -> Folded | FoldedNorm:
    """A layer as an affine map that can be changed."""
    return FoldedNorm(net, layer) if layer.parts[0].alone else Folded(net, layer)

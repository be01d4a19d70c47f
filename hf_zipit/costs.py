"""FLOPs (two per multiply-add) of one forward pass of one image, and parameters; counted on the meta device."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from hf_zipit.models.modeling_zipit import resize, set_attributes
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.text import load_errors, size_text


@dataclass(frozen=True)
class Cost:
    """The cost of a model.

    Attributes:
        flops: of one forward pass of one image.
        parameters: number of scalar parameters.
    """

    flops: int
    parameters: int


@dataclass(frozen=True)
class Cut:
    """A legal cut and what it costs. FLOPs are of one image.

    Attributes:
        name: the last step of the trunk.
        space: the space of the tensor that the head reads; the names of several spaces are joined by ` + `.
        trunk_flops: of the trunk alone.
        flops: of the trunk and one head.
        trunk_parameters: of the trunk alone.
        parameters: of the trunk and one head.
    """

    name: str
    space: str
    trunk_flops: int
    flops: int
    trunk_parameters: int
    parameters: int


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy in eval mode, without values."""
    return copy.deepcopy(model).to("meta").eval().requires_grad_(False)


def _running_on(size: tuple[int, int, int]) -> AbstractContextManager[None]:
    """Say that a model cannot run on an image of a size (channels, height, width)."""
    said = f"the model cannot run on an image of {size_text(size)} (channels, height, width)"
    return load_errors(f"{said}, which its preprocessing states", Exception)  # a network fails in many ways


def count_flops(model: nn.Module, input_size: tuple[int, int, int], **arguments: Any) -> int:
    """FLOPs of one forward pass of one image.

    Args:
        model: takes pixels `(1, channels, height, width)`.
        input_size: (channels, height, width).
        arguments: further keyword arguments of the forward pass.
    """
    net = _on_meta(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, _running_on(input_size):
        net(torch.empty(1, *input_size, device="meta"), **arguments)
    return int(counter.get_total_flops())


def count_parameters(module: nn.Module) -> int:
    """The number of scalar parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def cost_of(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """FLOPs of one image, and parameters.

    Args:
        model: takes pixels `(1, channels, height, width)`.
        input_size: (channels, height, width).
    """
    return Cost(count_flops(model, input_size), count_parameters(model))


@torch.no_grad()
def cut_costs(model: nn.Module, binding: Binding, input_size: tuple[int, int, int]) -> list[Cut]:
    """FLOPs and parameters of the trunk and of the whole model for every legal cut.

    Args:
        model: the model; it is copied to the meta device.
        binding: its spec, with the steps and the cuts.
        input_size: (channels, height, width).
    """
    net = _on_meta(model)
    value = torch.empty(1, *input_size, device="meta")
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    flops = 0
    held: set[str] = set()
    cuts = []
    for step, run in zip(binding.steps, binding.runs(net, input_size[1:]), strict=True):
        with FlopCounterMode(display=False) as counter, _running_on(input_size):
            value = run(value)
        flops += counter.get_total_flops()
        held |= set(binding.under([step], sizes))
        space = binding.after[step]
        if space is not None:
            cuts.append((step, space, flops, sum(sizes[name] for name in held)))
    parameters = sum(sizes[name] for name in held)
    return [Cut(step, space, trunk, flops, mine, parameters) for step, space, trunk, mine in cuts]


def grown(binding: Binding, parameter: str, shape: Sequence[int], ratios: Mapping[str, float]) -> list[int]:
    """The shape of a parameter after spaces are resized.

    Args:
        binding: which axes belong to which space.
        parameter: the name of the parameter.
        shape: its current shape.
        ratios: new width over current width, by space; other spaces keep their width.
    """
    out = list(shape)
    for row in binding.rows([parameter])[parameter]:
        out[row.axis] += round(row.length * (ratios.get(row.space, 1.0) - 1))
    return out


def resized(
    model: nn.Module,
    binding: Binding,
    ratios: Mapping[str, float],
    attributes: Mapping[str, Mapping[str, int | float]] | None = None,
) -> nn.Module:
    """A copy on the meta device, with resized spaces.

    Args:
        model: holds the parameters that the binding describes.
        binding: which axes belong to which space.
        ratios: new width over current width, by space; other spaces keep their width.
        attributes: path of a module -> attribute -> new value.
    """
    net = _on_meta(model)
    set_attributes(net, attributes or {})
    for name, value in net.state_dict().items():
        shape = grown(binding, name, value.shape, ratios)
        if shape != list(value.shape):
            resize(net, name, shape)
    return net


@torch.no_grad()
def runs_at(
    model: nn.Module,
    binding: Binding,
    ratios: Mapping[str, float],
    input_size: Sequence[int],
    attributes: Mapping[str, Mapping[str, int | float]] | None = None,
) -> bool:
    """Whether a model runs when spaces have other widths, and modules other attributes.

    Args:
        model: the model; it is not changed.
        binding: its spec.
        ratios: by space, relative to the model's own width.
        input_size: (channels, height, width).
        attributes: path of a module -> attribute -> new value.
    """
    net = resized(model, binding, ratios, attributes=attributes)
    try:
        net(torch.empty(1, *input_size, device="meta"))
    except Exception:  # a network fails in many ways with widths that it does not take
        return False
    return True


@dataclass(frozen=True)
class _Layer:
    """One linear or convolutional layer, and the widths that its FLOPs depend on.

    Attributes:
        flops: at the current widths.
        rows: the table rows of its weight's output axis, and of its input axis.
        lengths: the lengths of these two axes.
        classifies: whether the layer is part of the classifier.
    """

    flops: float
    rows: tuple[tuple[Row, ...], ...]
    lengths: tuple[int, int]
    classifies: bool

    def at(self, ratios: Mapping[str, float]) -> float:
        """FLOPs after spaces are resized; `ratios` are new over current widths."""
        flops = self.flops
        for rows, length in zip(self.rows, self.lengths, strict=True):
            flops *= 1 + sum(row.length * (ratios.get(row.space, 1.0) - 1) for row in rows) / length
        return flops


class LayerCosts:
    """FLOPs of a merge at any cut and widths, computed from one pass through one of the models."""

    def __init__(
        self,
        model: nn.Module,
        binding: Binding,
        input_size: tuple[int, int, int],
        classes: Sequence[int],
        wholes: Sequence[float] = (),
    ) -> None:
        """Count the FLOPs of every layer.

        Args:
            model: the shared part of one of the models.
            binding: its spec.
            input_size: (channels, height, width).
            classes: number of classes of each model.
            wholes: FLOPs of each complete model, if the models have layers that the binding does not describe.
        """
        self.models = len(classes)
        self.classifiers = sum(classes) / max(1, classes[0])
        self.wholes = wholes
        net = _on_meta(model)
        steps: list[Callable[[Tensor], Tensor]] = binding.runs(net, input_size[-2:]) or [net]
        self.layers: list[list[_Layer]] = []
        self.rest: list[float] = []
        value = torch.empty(1, *input_size, device="meta")
        paths = [path for path, _ in net.named_modules()]
        held = [binding.under([step], paths) for step in binding.steps]  # a step may call others, for nothing
        for run, mine in zip(steps, held or [paths], strict=True):
            with _running_on(input_size):
                value, layers, flops = _counted(run, value, net, mine, binding)
            self.layers.append(layers)
            self.rest.append(flops - sum(layer.flops for layer in layers))
        self.one = wholes[0] if wholes else count_flops(model, input_size)  # with layers that no step needs

    def flops(self, depth: int, ratios: Mapping[str, float], gathers: bool) -> float:
        """FLOPs of trunk and heads, as a multiple of the first model's.

        Args:
            depth: number of steps in the trunk; 0 if the model is not a chain of steps.
            ratios: merged width over one model's width, by space.
            gathers: whether each head gathers its own model's units, so that its cost does not change.
        """
        trunk = depth or len(self.rest)
        if self.wholes:
            behind = sum(self.wholes) - self.models * self._trunk(trunk, {})
            return (self._trunk(trunk, ratios) + behind) / self.one
        inside = {} if gathers else ratios
        total = sum(self.rest[:trunk]) + self.models * sum(self.rest[trunk:])
        for number, step in enumerate(self.layers):
            for layer in step:
                times = self.classifiers if layer.classifies else 1 if number < trunk else self.models
                total += times * layer.at(ratios if number < trunk else inside)
        return total / self.one

    def _trunk(self, depth: int, ratios: Mapping[str, float]) -> float:
        """FLOPs of the first `depth` steps."""
        layers = sum(layer.at(ratios) for step in self.layers[:depth] for layer in step)
        return sum(self.rest[:depth]) + layers


def _counted(
    run: Callable[[Tensor], Tensor], value: Tensor, net: nn.Module, held: Collection[str], binding: Binding
) -> tuple[Tensor, list[_Layer], float]:
    """Run one step; returns its output, its linear and convolutional layers among the modules `held`, and its FLOPs."""
    found: list[_Layer] = []

    def watch(path: str, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, _: object, out: object) -> None:
            if isinstance(module, nn.Linear | nn.Conv2d) and isinstance(out, Tensor):
                name = f"{path}.weight"
                weight = module.weight
                rows = binding.rows([name])[name]
                axes = tuple(tuple(row for row in rows if row.axis == axis) for axis in (0, 1))
                flops = 2.0 * out.numel() * weight[0].numel()
                found.append(_Layer(flops, axes, (weight.shape[0], weight.shape[1]), name in binding.classifier))

        return module.register_forward_hook(hook)

    with ExitStack() as stack, torch.no_grad(), FlopCounterMode(display=False) as counter:
        for path in held:
            stack.callback(watch(path, net.get_submodule(path)).remove)
        value = run(value)
    return value, found, counter.get_total_flops()

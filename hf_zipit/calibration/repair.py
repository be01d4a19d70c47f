"""REPAIR (Jordan et al., 2022): give the merged model's pre-activations the mean and deviation of its parents'.

An average of units that are not quite alike varies less than each of them, and the deeper the layer, the less is left.
What is folded into weights, biases and the norms' affine parameters leaves a plain checkpoint plain.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor, nn

from hf_zipit.assembly.plan import Plan
from hf_zipit.data.batches import Passes
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states

DEAD = 1e-6  # a unit that deviates less than this share of its size is not scaled


@torch.no_grad()
def repair(
    model: ZipItPreTrainedModel,
    parents: Sequence[Source],
    plan: Plan,
    matches: Mapping[str, Match],
    passes: Passes,
) -> None:
    """Set mean and standard deviation of every unit behind every layer that writes a space, in one pass.

    A merged unit's target is the mean over its members of their means and of their deviations; a head's layers get
    those of its own parent. In each batch, parents and merged model are compared layer by layer and the merged model
    runs on with what has been corrected so far, so that no layer is corrected for what an earlier one did. What the
    batches say together is folded into the layer: its weight, its bias, a norm's scale and shift. A layer without
    bias is only scaled.
    """
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    points = _points(model.eval(), copies, plan, matches, parents[0].input_size)
    model.to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        for point in points:
            for k, parent in enumerate(copies):
                stack.callback(parent.get_submodule(point.path).register_forward_hook(point.see(k)).remove)
            stack.callback(point.module.register_forward_hook(point.correct).remove)
        for pixels, _ in passes("Repairing"):
            pixels = pixels.to(passes.device, memory_format=torch.channels_last)
            for parent in copies:
                parent(pixels.to(next(parent.parameters()).dtype))
            model(pixels.to(model.dtype))
    model.to(memory_format=torch.contiguous_format)
    for point in points:
        for sums in (*point.targets, point.sums):
            if passes.accelerator.num_processes > 1:
                sums.copy_(passes.accelerator.reduce(sums, "sum"))
        _fold(point.module, *point.change([_pooled(sums) for sums in point.targets], _pooled(point.sums)))


Statistics = tuple[Tensor, Tensor]  # mean and standard deviation of every unit, each (C,)


class _Point:
    """One layer of the merged model beside the same layer of the parents.

    `targets[k]` and `sums` add up count, mean and mean square of the units of parent k and of the merged layer,
    `(3, C)`; `merge` makes one value for each unit of the merged layer from one for each unit of every parent.
    """

    def __init__(
        self, path: str, module: nn.Module, parents: Sequence[nn.Module], merge: Callable[[list[Tensor]], Tensor]
    ) -> None:
        self.path, self.module, self.merge = path, module, merge
        self.targets = [_sums(parent.get_submodule(path)) for parent in parents]
        self.sums = _sums(module)
        self.seen: list[list[Statistics]] = [[] for _ in parents]

    def see(self, parent: int) -> Callable[[nn.Module, object, Tensor], None]:
        """A hook that keeps a parent's statistics of this batch."""

        def hook(module: nn.Module, _: object, out: Tensor) -> None:
            self.seen[parent].append(_add(self.targets[parent], out, module))

        return hook

    def correct(self, module: nn.Module, _: object, out: Tensor) -> Tensor:
        """A hook that lets the merged model run on with corrected units."""
        mine = _add(self.sums, out, module)
        scale, shift = self.change([seen.pop(0) for seen in self.seen], mine)
        axis = _axis(module)
        shape = [-1 if i == axis % out.ndim else 1 for i in range(out.ndim)]
        out = out * scale.to(out).view(shape)
        return out if module._parameters.get("bias") is None else out + shift.to(out).view(shape)

    def change(self, targets: Sequence[Statistics], mine: Statistics) -> Statistics:
        """Scale and shift that turn the merged layer's statistics into the targets."""
        mean, deviation = (self.merge(list(values)) for values in zip(*targets, strict=True))
        alive = mine[1] > DEAD * mine[0].abs().clamp(min=1e-12)
        scale = torch.where(alive, deviation / torch.where(alive, mine[1], 1), 1)
        return scale, mean - scale * mine[0]


def _points(
    model: ZipItPreTrainedModel,
    parents: Sequence[nn.Module],
    plan: Plan,
    matches: Mapping[str, Match],
    input_size: tuple[int, int, int],
) -> list[_Point]:
    """The layers that write or carry a space and can be scaled and shifted by their own parameters."""
    found = []
    for path, module in model.trunk.named_modules():
        if rows := _rows(path, plan.binding):
            found.append(_Point(path, module, parents, _merging(rows, plan, matches)))
    heads = model.heads if isinstance(model, ZipItForImageClassification) else ()  # decoders are no chains
    for k, head in enumerate(heads):
        for path, module in head.named_modules():
            if _rows(path, plan.binding):
                found.append(_Point(path, module, parents, itemgetter(k)))
    affine: set[nn.Module] = set()
    with ExitStack() as stack:
        for point in found:
            stack.callback(point.module.register_forward_hook(_test(affine)).remove)
        model(torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype))
    return [point for point in found if point.module in affine]


def _test(affine: set[nn.Module]) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
    """A hook that finds the modules whose output is linear in their parameters: no activation, no standardisation."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: object) -> None:
        turned = copy.deepcopy(module)
        for parameter in turned.parameters():
            parameter.mul_(-2)
        if isinstance(out, Tensor) and torch.allclose(turned.forward(*args), -2 * out, rtol=1e-3, atol=1e-3):
            affine.add(module)

    return hook


def _rows(path: str, binding: Binding) -> list[Row]:
    """Where the spaces that a module writes or carries lie on its outputs."""
    name = f"{path}.weight"
    return [r for r in binding.table if r.parameter == name and r.axis == 0 and r.role != "read" and not r.local]


def _merging(rows: Sequence[Row], plan: Plan, matches: Mapping[str, Match]) -> Callable[[list[Tensor]], Tensor]:
    """How one value for each unit of each parent becomes one for each merged unit: as a bias would."""
    name = rows[0].parameter
    binding = replace(plan.binding, table=tuple(rows))
    return lambda values: merge_states([{name: value} for value in values], binding, matches, [name])[name]


def _axis(module: nn.Module) -> int:
    """The axis of a layer's output along which its units run."""
    tokens = isinstance(module, nn.Linear | nn.LayerNorm) and not type(module).__name__.endswith("2d")
    return -1 if tokens else 1


def _sums(module: nn.Module) -> Tensor:
    weight = module.get_parameter("weight")
    return weight.new_zeros(3, len(weight), dtype=torch.float64)


def _add(sums: Tensor, out: Tensor, module: nn.Module) -> Statistics:
    """Add a batch of a layer's output to its sums; returns the statistics of the batch alone."""
    values = out.movedim(_axis(module), -1).flatten(0, -2).double()  # (T, C)
    mean, variance = values.mean(0), values.var(0, correction=0)
    sums += len(values) * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    return mean, variance.sqrt()


def _pooled(sums: Tensor) -> Statistics:
    count, mean, square = sums
    mean = mean / count
    return mean, (square / count - mean.square()).clamp(min=0).sqrt()


def _fold(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let a layer scale and shift its own output."""
    weight, bias = module.get_parameter("weight"), module._parameters.get("bias")
    weight.mul_(scale.to(weight).view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        bias.mul_(scale.to(bias)).add_(shift.to(bias))

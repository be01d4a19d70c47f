"""REPAIR (Jordan et al., 2022): give the merged model's pre-activations the mean and deviation of its parents'.

The average of two units that differ varies less than each of them, and this shrinkage adds up over the layers. The
correction is written into weights, biases and the affine parameters of norms, so the checkpoint stays plain.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.rerun import held_modules
from hf_zipit.running import working_copy
from hf_zipit.specs.plan import Plan
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.transform.heads import HeadMatch, Matches, deviations
from hf_zipit.transform.transform import merge_states

DEAD = 1e-6  # a unit is not scaled if its deviation is below this share of its mean's magnitude

UnitStatistics = tuple[Tensor, Tensor]  # mean and standard deviation of every unit, each (C,)
Merging = Callable[[list[Tensor]], Tensor]  # one value per unit of each parent -> one per merged unit


@torch.no_grad()
def repair(merge: MergeState) -> None:
    """Set mean and standard deviation of every unit of every layer that writes a space, in one pass.

    The target of a merged unit is the mean of its members' means and the mean of their deviations. The layers of a
    head take those of its own parent.

    Each group of images (see `Passes.groups`) runs through parents and merged model, and the output of every layer of
    the merged model is corrected before the next layer reads it, so that no layer corrects the errors of an earlier
    one. After the pass the correction from all groups is written into each layer: its weight, its bias, or a norm's
    scale and shift. A layer without bias is only scaled.
    """
    model, passes = merge.model, merge.passes
    copies = [working_copy(parent.model, passes.device) for parent in merge.parents]
    layers = _layers(merge, copies)
    model.to(memory_format=torch.channels_last)
    with ExitStack() as stack:
        for layer in layers:
            for k, parent in enumerate(copies):
                stack.callback(parent.get_submodule(layer.path).register_forward_hook(layer.observe(k)).remove)
            stack.callback(layer.module.register_forward_hook(layer.correct).remove)
        for pixels, _ in passes.groups("Repairing"):
            pixels = pixels.to(passes.device, memory_format=torch.channels_last)
            for parent in copies:
                parent(pixels.to(next(parent.parameters()).dtype))
            model(pixels.to(model.dtype))
    model.to(memory_format=torch.contiguous_format)
    for layer in layers:
        for sums in (*layer.targets, layer.sums):
            if passes.accelerator.num_processes > 1:
                sums.copy_(passes.accelerator.reduce(sums, "sum"))
        targets = [_pooled(sums) for sums in layer.targets]
        scale, shift = layer.correction(targets, _pooled(layer.sums))
        _scale_output(layer.module, scale, shift)


class _RepairedLayer:
    """A layer of the merged model beside the same layer of each parent.

    Attributes:
        path: of the layer in trunk or head, and in the parents.
        module: the layer of the merged model.
        merge: makes one mean per merged unit `(C,)` from one per unit of each parent.
        spread: makes one deviation per merged unit `(C,)` from one per unit of each parent.
        targets: for each parent, count, sum of means and sum of mean squares of its units, weighted by positions,
            `(3, C)`.
        sums: the same for the merged layer.
        seen: for each parent, the statistics of the group that the merged model has not read yet.
    """

    def __init__(
        self, path: str, module: nn.Module, parents: Sequence[nn.Module], merge: Merging, spread: Merging
    ) -> None:
        self.path = path
        self.module = module
        self.merge = merge
        self.spread = spread
        self.targets = [_zeros(parent.get_submodule(path)) for parent in parents]
        self.sums = _zeros(module)
        self.seen: list[list[UnitStatistics]] = [[] for _ in parents]

    def observe(self, parent: int) -> Callable[[nn.Module, object, Tensor], None]:
        """A hook that adds up a parent's statistics and keeps those of this group."""

        def hook(module: nn.Module, _: object, out: Tensor) -> None:
            self.seen[parent].append(_add(self.targets[parent], out, module))

        return hook

    def correct(self, module: nn.Module, _: object, out: Tensor) -> Tensor:
        """A hook that replaces the merged layer's output by the corrected one."""
        mine = _add(self.sums, out, module)
        scale, shift = self.correction([seen.pop(0) for seen in self.seen], mine)
        axis = _axis(module)
        shape = [-1 if i == axis % out.ndim else 1 for i in range(out.ndim)]
        out = out * scale.to(out).view(shape)
        return out if module._parameters.get("bias") is None else out + shift.to(out).view(shape)

    def correction(self, targets: Sequence[UnitStatistics], mine: UnitStatistics) -> UnitStatistics:
        """Scale and shift `(C,)` that turn the merged layer's statistics into the targets."""
        mean, deviation = self.merge([one for one, _ in targets]), self.spread([one for _, one in targets])
        alive = mine[1] > DEAD * mine[0].abs().clamp(min=1e-12)
        scale = torch.where(alive, deviation / torch.where(alive, mine[1], 1), 1)
        return scale, mean - scale * mine[0]


def _layers(merge: MergeState, parents: Sequence[nn.Module]) -> list[_RepairedLayer]:
    """The layers that write or carry a space and can be scaled and shifted by their own parameters."""
    model, binding = merge.model.eval(), merge.plan.binding
    found = []
    for path, module in held_modules(model.trunk).items():
        rows = output_rows(path, binding)
        if rows and not any(isinstance(merge.matches[row.space], HeadMatch) for row in rows):  # these average nothing
            both = (merge.matches, deviations(merge.matches))
            mean, spread = (layer_merging(rows, merge.plan, matches) for matches in both)
            found.append(_RepairedLayer(path, module, parents, mean, spread))
    # The heads of a multi-task merge, with their decoders, are no chains of layers.
    heads = model.heads if isinstance(model, ZipItForImageClassification) else ()
    for k, head in enumerate(heads):
        for path, module in held_modules(head).items():
            if output_rows(path, binding):
                found.append(_RepairedLayer(path, module, parents, itemgetter(k), itemgetter(k)))
    affine: set[nn.Module] = set()
    pixels = torch.randn(1, *merge.parents[0].input_size, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack:
        for layer in found:
            stack.callback(layer.module.register_forward_hook(_collect_affine(affine)).remove)
        model(pixels.to(model.device, model.dtype))
    return [layer for layer in found if layer.module in affine]


def _collect_affine(affine: set[nn.Module]) -> Callable[[nn.Module, tuple[Tensor, ...], object], None]:
    """A hook that collects the modules whose output is linear in their parameters.

    A module that applies an activation or standardises its weight is not.
    """

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: object) -> None:
        scaled = copy.deepcopy(module)
        for parameter in scaled.parameters():
            parameter.mul_(-2)
        if isinstance(out, Tensor) and torch.allclose(scaled.forward(*args), -2 * out, rtol=1e-3, atol=1e-3):
            affine.add(module)

    return hook


def output_rows(path: str, binding: Binding) -> list[Row]:
    """The table rows of the spaces that a module writes or carries on its outputs."""
    name = f"{path}.weight"
    return [r for r in binding.table if r.parameter == name and r.axis == 0 and r.role != "read" and not r.local]


def layer_merging(rows: Sequence[Row], plan: Plan, matches: Matches) -> Merging:
    """A function that merges one value per unit of each parent as the biases of the layer are merged."""
    name = rows[0].parameter
    binding = replace(plan.binding, table=tuple(rows))
    return lambda values: merge_states([{name: value} for value in values], binding, matches, [name])[name]


def _axis(module: nn.Module) -> int:
    """The axis of a layer's output along which its units run."""
    tokens = isinstance(module, nn.Linear | nn.LayerNorm) and not type(module).__name__.endswith("2d")
    return -1 if tokens else 1


def _zeros(module: nn.Module) -> Tensor:
    """Empty sums for a layer, `(3, C)`."""
    weight = module.get_parameter("weight")
    return weight.new_zeros(3, len(weight), dtype=torch.float64)


def _add(sums: Tensor, out: Tensor, module: nn.Module) -> UnitStatistics:
    """Add a group of a layer's output to its sums; returns the statistics of the group alone."""
    values = out.movedim(_axis(module), -1).flatten(0, -2).double()  # (T, C)
    mean = values.mean(0)
    variance = values.var(0, correction=0)
    sums += len(values) * torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    return mean, variance.sqrt()


def _pooled(sums: Tensor) -> UnitStatistics:
    """Mean and standard deviation from sums `(3, C)`."""
    count, mean, square = sums
    mean = mean / count
    return mean, (square / count - mean.square()).clamp(min=0).sqrt()


def _scale_output(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Change a layer's own parameters so that its output is scaled and shifted, each `(C,)`."""
    weight = module.get_parameter("weight")
    bias = module._parameters.get("bias")
    weight.mul_(scale.to(weight).view(-1, *[1] * (weight.ndim - 1)))
    if bias is not None:
        bias.mul_(scale.to(bias)).add_(shift.to(bias))

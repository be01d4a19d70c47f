"""REPAIR without images: what a merged unit loses of its variance, told from the weights (Fold-AR, Wang et al., 2025).

The mean of units that differ varies less than each of them. If the inputs of a layer are uncorrelated and vary alike,
the variance of an output is the squared norm of its weights.
"""

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.repair import layer_merging, output_rows
from hf_zipit.models.rerun import held_modules
from hf_zipit.transform.heads import HeadMatch
from hf_zipit.transform.transform import unmerge_reads

LEAST = 0.05  # share of its variance that a unit is taken to keep at least: where weights cancel, the rule says little


@torch.no_grad()
def repair_weights(merge: MergeState) -> None:
    """Give every unit of the trunk the variance of its parents' units, as far as the weights tell it.

    A layer that a batch norm follows keeps its weights: the running variance of the norm becomes that of the mean of
    the unit's members, whose deviations are those in the parents' norms. Other layers are scaled, but not their bias.
    The layers of heads are their own parent's and stay as they are.
    """
    norms = _norms_behind(merge)
    paths = {module: path for path, module in held_modules(merge.model.trunk).items()}
    states = [parent.model.state_dict() for parent in merge.parents]
    for layer, path in paths.items():
        rows = output_rows(path, merge.plan.binding)
        if not rows or any(row.role != "write" or isinstance(merge.matches[row.space], HeadMatch) for row in rows):
            continue
        merged = layer_merging(rows, merge.plan, merge.matches)
        name = rows[0].parameter
        reads = [unmerge_reads(state, merge.plan.binding, merge.matches, [name], k) for k, state in enumerate(states)]
        units = [read[name].double().cpu().flatten(1) for read in reads]  # (n, inputs of the merged layer)
        norm = norms.get(layer)
        if norm is None:
            share = _squares(merged(units)) / merged([_squares(value) for value in units])
            _scale(layer.get_parameter("weight"), share.nan_to_num(1).clamp(min=LEAST).rsqrt())
            continue
        variances = [state[f"{paths[norm]}.running_var"].double().cpu() for state in states]
        scaled = [
            value * (variance / _squares(value).clamp(min=1e-30)).sqrt()[:, None]
            for value, variance in zip(units, variances, strict=True)
        ]
        found = torch.maximum(_squares(merged(scaled)), LEAST * merged(variances))
        norm.get_buffer("running_var").copy_(found)


def _norms_behind(merge: MergeState) -> dict[nn.Module, nn.Module]:
    """The batch norms that read the output of a layer of the trunk as it is, by layer; found on an image of noise."""
    model = merge.model.eval()
    written: dict[int, tuple[nn.Module, Tensor]] = {}  # outputs are kept, so that no other tensor takes their place
    found: dict[nn.Module, nn.Module] = {}

    def write(layer: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor):
            written[id(out)] = layer, out

    def read(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if id(args[0]) in written:
            found[written[id(args[0])][0]] = norm

    pixels = torch.randn(1, *merge.parents[0].input_size, generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack:
        for module in held_modules(model.trunk).values():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                stack.callback(module.register_forward_pre_hook(read).remove)
            elif "weight" in module._parameters:
                stack.callback(module.register_forward_hook(write).remove)
        model(pixels.to(model.device, model.dtype))
    return found


def _squares(rows: Tensor) -> Tensor:
    """The squared norm of every row."""
    return rows.square().sum(1)


def _scale(weight: Tensor, factor: Tensor) -> None:
    """Scale the outputs of a weight, in place."""
    weight.mul_(factor.to(weight).view(-1, *[1] * (weight.ndim - 1)))

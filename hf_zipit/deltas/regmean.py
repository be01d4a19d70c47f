"""RegMean: merge linear layers by least squares on their inputs (Jin et al., 2023), on differences to a base.

Weights of linear layers and ungrouped convolutions are solved for; all other tensors are averaged, as in the paper. In
directions that no input has, the merge stays at the base.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.data.batches import Passes
from hf_zipit.deltas.rules import Deltas, State, mean
from hf_zipit.errors import OptionError
from hf_zipit.running import STATISTICS

OFF_DIAGONAL = 0.95  # factor on products of different inputs; the paper found 0.9, later work 0.95 for vision models
RIDGE = 1e-6  # relative to the mean of the diagonal
POSITIONS = 2**16  # that a convolution reads are multiplied at a time
MOST = 256  # images of each data set for the sequential form, which holds the activations of all


@dataclass(frozen=True)
class Inputs:
    """Where the inputs of the layers come from.

    Attributes:
        networks: one per model, in eval mode, on the device of the passes; they share parameter names.
        passes: over the images.
        base: the tensors that the differences are relative to.
    """

    networks: Sequence[nn.Module]
    passes: Passes
    base: State


def regmean(deltas: Deltas, inputs: Inputs) -> dict[str, Tensor]:
    """Least squares on the inputs that each model has in itself.

    `D = [sum_t D_t G_t] [sum_t G_t]^-1`, where `G_t` are the products of the inputs of model t on its own data set, or
    on the one data set.

    Args:
        deltas: one mapping per model.
        inputs: the models and their images.

    >>> regmean(deltas, Inputs(networks, passes, base))["fc.weight"].shape  # doctest: +SKIP
    torch.Size([192, 768])
    """
    names = _layers(inputs.networks[0], deltas[0])
    found = [_products(inputs, model, names) for model in range(len(deltas))]
    out = mean(deltas)
    for name in names:
        out[name] = _solved([delta[name] for delta in deltas], [one[name] for one in found])
    return out


@torch.no_grad()
def regmean_sequential(deltas: Deltas, inputs: Inputs) -> dict[str, Tensor]:
    """Least squares on the inputs that the layers have in the merged model, layer after layer (RegMean++).

    The images of all data sets run through the first network at once. As they arrive at a layer, its weights are solved
    for, so the next layer reads what the merged ones put out.

    Args:
        deltas: one mapping per model.
        inputs: the models, and one data set per model.

    Raises:
        OptionError: there is one data set for all models, which makes this an average; or there are several processes.

    >>> regmean_sequential(deltas, Inputs(networks, passes, base))["fc.weight"].shape  # doctest: +SKIP
    torch.Size([192, 768])
    """
    passes = inputs.passes
    if len(passes.images) != len(deltas):
        raise OptionError(
            "regmean-sequential needs a data set per model, as one for all would give the average: use regmean"
        )
    if passes.accelerator.num_processes > 1:
        raise OptionError("regmean-sequential runs in one process; use regmean")
    out = mean(deltas)
    network = inputs.networks[0]
    norms = [_norms(one) for one in inputs.networks]
    weights = {name: inputs.base[name] + value for name, value in out.items()}
    network.load_state_dict({**mean(norms), **weights}, strict=False)
    counts = [min(MOST, len(part)) for part in passes.images]
    shares = zip(passes.images, counts, strict=True)
    pixels = torch.cat([torch.stack([part[i] for i in range(count)]) for part, count in shares])

    def solve(name: str) -> Callable[..., None]:
        def before(layer: Any, args: tuple[Tensor, ...]) -> None:
            if name in solved:
                return
            solved.add(name)
            times, rest = divmod(len(args[0]), sum(counts))  # windows of one image may lie one after the other
            if rest or not times:
                raise OptionError(f"regmean-sequential cannot tell the images apart that {name} reads; use regmean")
            grams = [_gram(layer, part) for part in torch.split(args[0], [times * count for count in counts])]
            out[name] = _solved([delta[name] for delta in deltas], grams)
            layer.weight.copy_(inputs.base[name] + out[name])

        return before

    solved: set[str] = set()
    with ExitStack() as stack:
        for name in _layers(network, deltas[0]):
            layer = network.get_submodule(name.rpartition(".")[0])
            stack.callback(layer.register_forward_pre_hook(solve(name)).remove)
        network(pixels.to(passes.device, next(network.parameters()).dtype))
    return out


def _norms(network: nn.Module) -> dict[str, Tensor]:
    """The statistics of all batch norms."""
    return {name: value for name, value in network.state_dict().items() if name.endswith(STATISTICS)}


def _layers(network: nn.Module, names: State) -> list[str]:
    """The weights, among those named, of linear layers and ungrouped convolutions."""
    found = []
    for path, module in network.named_modules():
        plain = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if plain and f"{path}.weight" in names:
            found.append(f"{path}.weight")
    return found


@torch.no_grad()
def _products(inputs: Inputs, model: int, names: Sequence[str]) -> dict[str, Tensor]:
    """The products of the inputs of each layer of one model, on the images that are its own, `(inputs, inputs)`."""
    network, passes = inputs.networks[model], inputs.passes
    found: dict[str, Tensor] = {}

    def add(name: str) -> Callable[..., None]:
        def before(layer: Any, args: tuple[Tensor, ...]) -> None:
            found[name] = found.get(name, 0) + _gram(layer, args[0])

        return before

    with ExitStack() as stack:
        for name in names:
            layer = network.get_submodule(name.rpartition(".")[0])
            stack.callback(layer.register_forward_pre_hook(add(name)).remove)
        for pixels, task in passes("Reading inputs"):
            own = pixels if len(passes.images) == 1 else pixels[task == model]
            if len(own):
                network(own.to(passes.device, next(network.parameters()).dtype))
    size = {name: network.get_parameter(name)[0].numel() for name in names}
    none = {name: torch.zeros(size[name], size[name], dtype=torch.float64, device=passes.device) for name in names}
    return {name: passes.accelerator.reduce(found.get(name, none[name]), "sum").cpu() for name in names}


def _gram(layer: Any, value: Tensor) -> Tensor:
    """The products of the inputs of a layer, summed over images and positions, in float64."""
    if isinstance(layer, nn.Linear):
        rows = value.flatten(0, -2)
        return (rows.T @ rows).double()
    total = torch.zeros((), dtype=torch.float64, device=value.device)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    value = nn.functional.pad(value, layer._reversed_padding_repeated_twice, mode)
    step = max(1, POSITIONS // (value.shape[-1] * value.shape[-2]))
    for part in torch.split(value, step):
        patches = nn.functional.unfold(part, layer.kernel_size, layer.dilation, 0, layer.stride)
        rows = patches.transpose(1, 2).flatten(0, 1)
        total = total + (rows.T @ rows).double()
    return total


def _solved(deltas: Sequence[Tensor], grams: Sequence[Tensor]) -> Tensor:
    """The merged difference of one layer, from those of the models and the products of their inputs."""
    first = deltas[0]
    inputs = torch.stack([torch.lerp(torch.diag(gram.diagonal()), gram, OFF_DIAGONAL) for gram in grams])
    matrices = torch.stack([delta.to(inputs).flatten(1) for delta in deltas])
    total, target = inputs.sum(0), (matrices @ inputs).sum(0)
    ridge = RIDGE * total.diagonal().mean().clamp(min=torch.finfo(total.dtype).tiny)
    solved: Tensor = torch.linalg.solve(total + ridge * torch.eye(len(total)).to(total), target.T).T
    return solved.reshape(first.shape).to(first)

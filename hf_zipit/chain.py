"""A model as a chain of steps: where it may be cut, what each cut costs, and running a part of it."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.spaces import Binding
from hf_zipit.steps import run_steps


class ModelChain:
    """Runs a model for what hooks see, no further than the last step that holds one of the modules `until`."""

    def __init__(self, model: nn.Module, binding: Binding, until: Iterable[str] = ()) -> None:
        until = list(until)
        last = [i for i, step in enumerate(binding.steps) if binding.under([step], until)]
        covered = all(any(binding.under([step], [name]) for step in binding.steps) for name in until)
        self.model = model
        self.steps = binding.calls(binding.steps[: max(last) + 1]) if last and covered else []

    def __call__(self, pixels: Tensor) -> None:
        """Run a batch `(B, 3, H, W)`."""
        if not self.steps:
            self.model(pixels)
        run_steps(self.model, self.steps, pixels, pixels.shape[-2:])


@dataclass(frozen=True)
class Cut:
    """A legal cut: the trunk ends after the step `name`, where `space` is alive. FLOPs are of one image.

    `flops` counts the trunk and one head, `trunk_flops` the trunk alone; parameters likewise.
    """

    name: str
    space: str
    trunk_flops: int
    flops: int
    trunk_parameters: int
    parameters: int


def resolve_cut(binding: Binding, cut: str | None) -> int:
    """Number of trunk steps for a cut named by a step (`layer2.1`) or by a stage that ends with one (`layer2`).

    `None` is the last legal cut: everything but the classifier is merged. 0 for a full merge without a chain.

    Raises:
        OptionError: unknown cut; the message lists the legal ones.
    """
    cuts = binding.cuts
    if cut is None:
        return binding.steps.index(cuts[-1]) + 1 if cuts else 0
    if not cuts:
        raise OptionError(f"the spec {binding.spec.family} has no chain: these models can only be merged fully")
    inside = [step for step in cuts if step == cut or step.startswith(cut + ".")]
    if not inside:
        raise OptionError(f"unknown cut '{cut}'; legal cuts: {', '.join(cut_labels(cut_names(binding)))}")
    return binding.steps.index(inside[-1]) + 1


def cut_names(binding: Binding) -> dict[str, str | None]:
    """Every legal cut by its step, and the stage that ends with the step: `resolve_cut` takes both names."""
    names: dict[str, str | None] = {}
    for i, step in enumerate(binding.cuts):
        stage = "" if ":" in step else step.rpartition(".")[0]
        last = bool(stage) and not any(s.startswith(stage + ".") for s in binding.cuts[i + 1 :])
        names[step] = stage if last else None
    return names


def cut_labels(names: Mapping[str, str | None]) -> list[str]:
    """Cuts with both their names, as in `layer2.1 = layer2`."""
    return [f"{step} = {stage}" if stage else step for step, stage in names.items()]


@torch.no_grad()
def cut_costs(model: nn.Module, binding: Binding, input_size: tuple[int, int, int]) -> list[Cut]:
    """FLOPs and parameters of the trunk and of the whole model for every legal cut, counted on the meta device."""
    net = copy.deepcopy(model).to("meta").eval()
    value = torch.empty(1, *input_size, device="meta")
    sizes = {name: parameter.numel() for name, parameter in net.named_parameters()}
    flops, parameters, cuts = 0, 0, []
    for step in binding.steps:
        with FlopCounterMode(display=False) as counter:
            value = run_steps(net, binding.calls([step]), value, input_size[1:])
        flops += counter.get_total_flops()
        parameters += sum(sizes[name] for name in binding.under([step], sizes))
        space = binding.after[step]
        if space is not None:
            cuts.append((step, space, flops, parameters))
    return [Cut(s, space, f, flops, p, parameters) for s, space, f, p in cuts]


@torch.no_grad()
def channel_axis(model: nn.Module, binding: Binding, depth: int, input_size: tuple[int, int, int]) -> int:
    """The axis of the tensor after `depth` steps along which its space runs: 1 or -1."""
    net = copy.deepcopy(model).to("meta").eval()
    steps = binding.calls(binding.steps[:depth])
    value = run_steps(net, steps, torch.empty(1, *input_size, device="meta"), input_size[1:])
    return binding.axis(value.ndim)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, or an output object of transformers.

    Of a model without classes it is the first tensor of the output.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    if not isinstance(output, Tensor):
        raise SourceError(f"the model returns a {type(output).__name__} without logits")
    return output


def count_flops(model: nn.Module, input_size: tuple[int, int, int], **arguments: Any) -> int:
    """FLOPs (two per multiply-add) of one forward of one image, counted on the meta device."""
    net = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *input_size, device="meta"), **arguments)
    return int(counter.get_total_flops())


def device_of(device: str | None, default: torch.device | str) -> torch.device:
    """The device a user named, or the default.

    Raises:
        OptionError: there is no such device on this machine.
    """
    try:
        found = torch.device(device or default)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"cannot run on device '{device}': {str(error).splitlines()[0]}") from None
    return found


def working_copy(model: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """A copy to run: at least float32, in eval mode, channels last unless told otherwise (it is faster)."""
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    out = copy.deepcopy(model).eval().to(device, dtype)
    return out.to(memory_format=torch.channels_last) if channels_last else out

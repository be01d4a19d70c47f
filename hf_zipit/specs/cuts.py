"""A model as a chain of steps: where it may be cut, what each cut costs, and running a part of it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hf_zipit.errors import OptionError
from hf_zipit.models.steps import run_steps
from hf_zipit.specs.spaces import Binding


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
def channel_axis(model: nn.Module, binding: Binding, depth: int, input_size: tuple[int, int, int]) -> int:
    """The axis of the tensor after `depth` steps along which its space runs: 1 or -1."""
    net = copy.deepcopy(model).to("meta").eval()
    steps = binding.calls(binding.steps[:depth])
    value = run_steps(net, steps, torch.empty(1, *input_size, device="meta"), input_size[1:])
    return binding.axis(value.ndim)

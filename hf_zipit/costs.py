"""A model as a chain of steps: where it may be cut, what each cut costs, and running a part of it."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hf_zipit.models.steps import run_steps
from hf_zipit.specs.cuts import Cut
from hf_zipit.specs.spaces import Binding


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


def count_flops(model: nn.Module, input_size: tuple[int, int, int], **arguments: Any) -> int:
    """FLOPs (two per multiply-add) of one forward of one image, counted on the meta device."""
    net = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, *input_size, device="meta"), **arguments)
    return int(counter.get_total_flops())

"""Stages after the merge that repair the merged model's statistics on the data. No labels, no gradients."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def batchnorm(model: nn.Module, batches: Batches, accelerator: Accelerator, device: torch.device) -> None:
    """Re-estimate the running statistics of every batch norm, trunk and heads, in place.

    Each norm sees the batch statistics below it, and its running mean and variance become the average over all
    batches of all processes (Jordan et al., 2022; ZipIt!, appendix A). Everything but the norms stays in eval mode.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    model.to(memory_format=torch.channels_last)
    for pixels, _ in batches:
        model(pixels.to(device, next(model.parameters()).dtype, memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        _reduce(norm, accelerator)


def _reduce(norm: nn.modules.batchnorm._BatchNorm, accelerator: Accelerator) -> None:
    """Average a norm's statistics over the processes, weighted by the batches each has seen."""
    if accelerator.num_processes == 1:
        return
    state = dict(norm.named_buffers())
    count = state["num_batches_tracked"].double()
    total = accelerator.reduce(count.clone(), "sum")
    for name in ("running_mean", "running_var"):
        state[name].copy_(accelerator.reduce(state[name].double() * count, "sum") / total)
    state["num_batches_tracked"].copy_(total)


def none(model: nn.Module, batches: Batches, accelerator: Accelerator, device: torch.device) -> None:
    """Leave the merged model as it is."""


CALIBRATIONS: dict[str, Callable[[nn.Module, Batches, Accelerator, torch.device], None]] = {
    "batchnorm": batchnorm,
    "none": none,
}

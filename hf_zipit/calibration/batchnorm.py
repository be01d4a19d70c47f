"""Re-estimate batch norms: a merge changes what they read, so the parents' running statistics no longer fit."""

import torch
from accelerate import Accelerator
from torch import nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.data.batches import Passes


@torch.no_grad()
def batchnorm(merge: MergeState) -> None:
    """Re-estimate the running statistics of every batch norm of trunk and heads.

    Source: Jordan et al. (2022), REPAIR; ZipIt!, appendix A.
    """
    renew_norms(merge.model, merge.passes)


def renew_norms(model: nn.Module, passes: Passes) -> bool:
    """Re-estimate the batch norms of a model in place, in one pass over the images.

    The running mean and variance of a norm become the averages over all batches of all processes, each batch
    normalised by its own statistics. Everything but the norms stays in eval mode.

    Returns:
        Whether the model has batch norms.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    model.to(memory_format=torch.channels_last)
    dtype = next(model.parameters()).dtype
    for pixels, _ in passes("Calibrating"):
        model(pixels.to(passes.device, dtype, memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        _reduce(norm, passes.accelerator)
    return True


def _reduce(norm: nn.modules.batchnorm._BatchNorm, accelerator: Accelerator) -> None:
    """Average a norm's statistics over the processes, weighted by the number of batches each has seen."""
    if accelerator.num_processes == 1:
        return
    state = dict(norm.named_buffers())
    count = state["num_batches_tracked"].double()
    total = accelerator.reduce(count.clone(), "sum")
    for name in ("running_mean", "running_var"):
        state[name].copy_(accelerator.reduce(state[name].double() * count, "sum") / total)
    state["num_batches_tracked"].copy_(total)

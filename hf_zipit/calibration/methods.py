"""Stages after the merge that repair the merged model's statistics on the data. No labels, no gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from hf_zipit.assembly.plan import Plan
from hf_zipit.calibration import repair as repairing
from hf_zipit.calibration.refit import refit as sweep
from hf_zipit.calibration.refit.tracks import network_of
from hf_zipit.data.batches import Passes
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import working_copy
from hf_zipit.sources.source import Source
from hf_zipit.transform.match import Match


@dataclass(frozen=True)
class Merge:
    """A merge that is about to be calibrated: the merged model on its device, its parents, and how it was made."""

    model: ZipItPreTrainedModel
    parents: Sequence[Source]
    plan: Plan
    matches: Mapping[str, Match]
    passes: Passes


@dataclass(frozen=True)
class Calibration:
    """`run` changes a merge in place, which has been calibrated by `after` before.

    `joint` says that it is made for the joint prediction, which only models that are all classifiers have.
    """

    run: Callable[[Merge], None]
    after: str | None = None
    joint: bool = False


@torch.no_grad()
def batchnorm(merge: Merge) -> None:
    """Re-estimate the running statistics of every batch norm, trunk and heads.

    Each norm sees the batch statistics below it, and its running mean and variance become the average over all
    batches of all processes (Jordan et al., 2022; ZipIt!, appendix A). Everything but the norms stays in eval mode.
    """
    _renew(merge.model, merge.passes)


def _renew(model: nn.Module, passes: Passes) -> bool:
    """Re-estimate the batch norms of a model in place; whether it has any."""
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
    """Average a norm's statistics over the processes, weighted by the batches each has seen."""
    if accelerator.num_processes == 1:
        return
    state = dict(norm.named_buffers())
    count = state["num_batches_tracked"].double()
    total = accelerator.reduce(count.clone(), "sum")
    for name in ("running_mean", "running_var"):
        state[name].copy_(accelerator.reduce(state[name].double() * count, "sum") / total)
    state["num_batches_tracked"].copy_(total)


def repair(merge: Merge) -> None:
    """Set every unit's mean and deviation to its parents'; see `repair.repair`."""
    repairing.repair(merge.model, merge.parents, merge.plan, merge.matches, merge.passes)


def refit(merge: Merge) -> None:
    """Refit the layers and heads by least squares towards the parents; see `refit.sweep`."""
    sweep.refit(merge.model, merge.parents, merge.plan, merge.matches, merge.passes)


def refit_per_task(merge: Merge) -> None:
    """Refit towards each parent alone on the images of its own task; needs a data set for each model."""
    sweep.refit(merge.model, merge.parents, merge.plan, merge.matches, merge.passes, per_task=True)


@torch.no_grad()
def refit_joint(merge: Merge) -> None:
    """After a refit, aim each head halfway between its parent and that parent with batch norms renewed on all images.

    A parent is sure of itself on images of other tasks, and spoils the joint prediction. With norms renewed on the
    images of all tasks it is less so: this trades a little accuracy within the tasks for more across them. Without
    batch norms it is the refit alone.
    """
    judges = [working_copy(network_of(parent), merge.passes.device) for parent in merge.parents]
    if all(_renew(judge, merge.passes) for judge in judges):
        sweep.refit(merge.model, merge.parents, merge.plan, merge.matches, merge.passes, trunk=False, judges=judges)


def refit_heads(merge: Merge) -> None:
    """Refit the heads alone."""
    sweep.refit(merge.model, merge.parents, merge.plan, merge.matches, merge.passes, trunk=False)


def none(merge: Merge) -> None:
    """Leave the merged model as it is."""


CALIBRATIONS = {
    "batchnorm": Calibration(batchnorm),
    "repair": Calibration(repair),
    "refit": Calibration(refit),
    "refit-per-task": Calibration(refit_per_task),
    "refit-joint": Calibration(refit_joint, after="refit", joint=True),
    "refit-heads": Calibration(refit_heads, after="batchnorm"),
    "none": Calibration(none),
}


def stages_of(name: str) -> list[str]:
    """A calibration and all that come before it, in order.

    >>> stages_of("refit-joint")
    ['refit', 'refit-joint']
    """
    before = CALIBRATIONS[name].after
    return [*(stages_of(before) if before else []), name]

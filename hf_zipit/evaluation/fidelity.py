"""How close a merged model is to its parents on images without labels: its outputs, and its features layer by layer."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.data.batches import Passes
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding
from hf_zipit.statistics.probes import POSITIONS, Reader
from hf_zipit.transform.match import Match


@dataclass(frozen=True)
class Distance:
    """How far a task's outputs are from its parent's.

    `agreement` is the share of images, or pixels, with the same class. `error` is the squared distance of the outputs,
    as a share of the parent's variance: 0 for the parent itself, 1 for the best constant.
    """

    agreement: float
    error: float


@torch.inference_mode()
def distance(merged: ZipItPreTrainedModel, parents: Sequence[Source], passes: Passes) -> dict[str, Distance]:
    """Compare each task's outputs with its parent's on the task's images, or on all where there is one data set.

    Args:
        merged: the merged model.
        parents: the source models, in task order.
        passes: over the images; every process takes its share and all return the same.

    >>> distance(merged, merger.sources, merger.passes)["birds"].error  # doctest: +SKIP
    """
    model: Any = working_copy(merged, passes.device)
    tasks = merged.config.tasks
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    sums = torch.zeros(len(tasks), 4, dtype=torch.float64, device=passes.device)  # images, same class, errors, squares
    totals = [torch.zeros(1, dtype=torch.float64, device=passes.device) for _ in tasks]
    for pixels, part in passes("Comparing outputs"):
        pixels = pixels.to(passes.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
        for k, (task, copy) in enumerate(zip(tasks, copies, strict=True)):
            mine = pixels if len(passes.images) == 1 else pixels[part.to(pixels.device) == k]
            if not len(mine):
                continue
            answers = model(mine, tasks=task)
            answer = (getattr(answers, "task_logits", None) or answers.task_outputs)[task]
            own, found = logits_of(copy(mine)).double(), logits_of(answer).double()
            hits = (own.argmax(1) == found.argmax(1)).double()
            same = hits.sum() * len(mine) / hits.numel()
            sums[k] += torch.stack([same.new_tensor(len(mine)), same, (own - found).square().sum(), own.square().sum()])
            totals[k] = totals[k] + own.sum(0)
    out = {}
    for task, mine, total in zip(tasks, _reduced(sums, passes.accelerator), totals, strict=True):
        images, same, errors, squares = mine.tolist()
        variance = squares - _reduced(total, passes.accelerator).square().sum().item() / images
        out[task] = Distance(same / images, errors / variance if variance > 0 else float(errors > 0))
    return out


@torch.inference_mode()
def feature_correlation(
    merged: ZipItForImageClassification,
    parents: Sequence[Source],
    binding: Binding,
    matches: Mapping[str, Match],
    passes: Passes,
) -> dict[str, float]:
    """For each space of the trunk, how well the merged units stand for their members, in the order of the spaces.

    That is the correlation between a parent's unit and the merged unit it became, as both occur in the running models,
    averaged over the units that are not constant and over the parents (ZipIt!, section 5). Spaces that are observed
    behind the trunk are left out.
    """
    model: Any = working_copy(merged, passes.device)
    modules = dict(model.trunk.named_modules())
    spaces = {
        name: space
        for name, space in binding.spaces.items()
        if name in matches and space.probes and all(probe.module in modules for probe in space.probes)
        if matches[name].width == space.size or not any(probe.start for probe in space.probes)
    }
    wide = {name: replace(space, size=matches[name].width) for name, space in spaces.items()}
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    sums = {
        name: torch.zeros(6, len(m.labels), dtype=torch.float64, device=passes.device) for name, m in matches.items()
    }
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader(copy, spaces, POSITIONS)) for copy in copies]
        mine = stack.enter_context(Reader(model.trunk, wide, POSITIONS))
        for pixels, _ in passes("Comparing features"):
            pixels = pixels.to(passes.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
            for copy in copies:
                copy(pixels)
            model(pixels, tasks=model.config.tasks[0])
            for name in spaces:
                found, features = mine.pop(name), [reader.pop(name) for reader in readers]
                for y, *values in zip(found, *features, strict=True):
                    _accumulate(sums[name], torch.cat(values, -1), y, matches[name].labels)
    return {name: _correlation(_reduced(sums[name], passes.accelerator)) for name in spaces}


def _accumulate(sums: Tensor, x: Tensor, y: Tensor, labels: Tensor) -> None:
    """Add a batch to count, sums, squares and products of every unit: x (B, P, N n), y (B, P, m), sums (6, N n)."""
    x = x.flatten(0, -2).double()
    y = y.flatten(0, -2).double().index_select(1, labels.clamp(min=0).to(y.device)) * (labels >= 0).to(x)
    sums += torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(1)


def _correlation(sums: Tensor) -> float:
    count, x, y, xx, yy, xy = sums
    x, y, xx, yy, xy = x / count, y / count, xx / count, yy / count, xy / count
    spread = (xx - x * x).clamp(min=0) * (yy - y * y).clamp(min=0)
    alive = (xx - x * x > 1e-9 * xx) & (yy > 0)
    values = torch.where(spread > 0, (xy - x * y) / spread.clamp(min=1e-300).sqrt(), 0)
    return float(values[alive].clamp(-1, 1).mean()) if alive.any() else 0.0


def _reduced(sums: Tensor, accelerator: Accelerator) -> Tensor:
    return sums if accelerator.num_processes == 1 else accelerator.reduce(sums, "sum")

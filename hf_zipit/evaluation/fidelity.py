"""How close a merged model is to its parents on unlabelled images, in its outputs and in each feature space."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from hf_zipit.data.batches import Passes
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.models.rerun import held_modules
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding
from hf_zipit.statistics.probes import POSITIONS, Reader
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match


@dataclass(frozen=True)
class Distance:
    """How far a task's outputs are from its parent's.

    Attributes:
        agreement: Fraction of images or pixels with the same predicted class; for outputs with a sigmoid each, of the
            outputs with the same sign.
        error: Squared distance of the outputs, relative to the variance of the parent's outputs: 0 for the parent
            itself, 1 for the best constant. For a detector, the mean of that of its logits and that of its boxes.
    """

    agreement: float
    error: float


@torch.no_grad()
def distance(merged: ZipItPreTrainedModel, parents: Sequence[Source], passes: Passes) -> dict[str, Distance]:
    """Compare each task's outputs with those of its parent, on the task's images, or on all if there is one data set.

    Args:
        merged: The merged model.
        parents: The models that were merged; one that is a merge itself has several tasks.
        passes: Passes over the images, of one data set, or of one for each parent. Every process reads its share, and
            all return the same result.

    Returns:
        Task -> distance.

    >>> distance(merged, merger.sources, merger.passes)["birds"].error  # doctest: +SKIP
    """
    model: Any = working_copy(merged, passes.device)
    tasks = merged.config.tasks
    owners = [k for k, parent in enumerate(parents) for _ in parent.tasks]
    parents = [task for parent in parents for task in parent.alone()]
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    # per task, of logits and of boxes: images, images with the same class, squared errors, squares of the parent's
    sums = torch.zeros(len(tasks), 2, 4, dtype=torch.float64, device=passes.device)
    totals = [[torch.zeros(1, dtype=torch.float64, device=passes.device) for _ in range(2)] for _ in tasks]
    for pixels, part in passes("Comparing outputs"):
        pixels = pixels.to(passes.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
        for k, (task, copy) in enumerate(zip(tasks, copies, strict=True)):
            mine = pixels if len(passes.images) == 1 else pixels[part.to(pixels.device) == owners[k]]
            if not len(mine):
                continue
            answers = model(mine, tasks=task)
            answer = (getattr(answers, "task_logits", None) or answers.task_outputs)[task]
            pairs = zip(_parts(copy(mine)), _parts(answer), strict=True)
            for which, (own, found) in enumerate(pairs):
                signs = parents[k].problem in ("binary", "multi-label") or own.shape[1] == 1
                hits = ((own > 0) == (found > 0) if signs else own.argmax(1) == found.argmax(1)).double()
                same = hits.sum() * len(mine) / hits.numel()  # pixels count as fractions of their image
                squares = (own - found).square().sum(), own.square().sum()
                sums[k, which] += torch.stack([same.new_tensor(len(mine)), same, *squares])
                totals[k][which] = totals[k][which] + own.sum(0)
    reduced = _reduced(sums, passes.accelerator)
    return {task: _distance(reduced[k], totals[k], passes.accelerator) for k, task in enumerate(tasks)}


def _parts(output: Any) -> list[Tensor]:
    """What is compared of an output: the logits, and the boxes if there are any."""
    boxes = output.get("pred_boxes") if isinstance(output, Mapping) else None
    return [value.double() for value in (logits_of(output), boxes) if value is not None]


def _distance(sums: Tensor, totals: Sequence[Tensor], accelerator: Accelerator) -> Distance:
    """The distance of one task, from its sums; the error is the mean over logits and boxes."""
    errors = []
    for (images, _, error, squares), total in zip(sums.tolist(), totals, strict=True):
        if images:
            variance = squares - _reduced(total, accelerator).square().sum().item() / images
            errors.append(error / variance if variance > 0 else float(error > 0))
    return Distance(float(sums[0, 1] / sums[0, 0]), sum(errors) / len(errors))


@torch.no_grad()
def feature_correlation(
    merged: ZipItForImageClassification,
    parents: Sequence[Source],
    binding: Binding,
    matches: Matches,
    passes: Passes,
) -> dict[str, float]:
    """The mean correlation between the parents' units and their merged units, in each space of the trunk.

    The activations are those of the running models (ZipIt!, section 5). The mean is over all parents and all units that
    are not constant. With a dense match, a parent's unit is compared with what its unmerge matrix makes of the merged
    units. Spaces that are only observed after the trunk are left out, and
    so are heads that are kept of all models.

    Args:
        merged: The merged model.
        parents: The parents, in task order.
        binding: The spec bound to the parents.
        matches: The match of each merged space.
        passes: Passes over the images. Every process reads its share, and all return the same result.

    Returns:
        Space -> correlation, in the order of the spaces.
    """
    model: Any = working_copy(merged, passes.device)
    steps = binding.steps[: len(merged.config.trunk or ())]  # without weights, modules behind a cut are held too
    held = held_modules(model.trunk)
    modules = set(binding.under(steps, held) if steps else held)
    known = {name: match for name, match in matches.items() if not isinstance(match, HeadMatch)}
    spaces = {
        name: space
        for name, space in binding.spaces.items()
        if name in known and space.probes and all(probe.module in modules for probe in space.probes)
        if known[name].width == space.size or not any(probe.start for probe in space.probes)
    }
    wide = {name: replace(space, size=known[name].width) for name, space in spaces.items()}
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    sums = {name: torch.zeros(6, sum(m.sizes), dtype=torch.float64, device=passes.device) for name, m in known.items()}
    with ExitStack() as stack:
        own = [{name: space.of(k) for name, space in spaces.items()} for k in range(len(copies))]
        readers = [stack.enter_context(Reader(*pair, POSITIONS)) for pair in zip(copies, own, strict=True)]
        mine = stack.enter_context(Reader(model.trunk, wide, POSITIONS))
        for pixels, _ in passes("Comparing features"):
            pixels = pixels.to(passes.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
            for copy in copies:
                copy(pixels)
            model(pixels, tasks=model.config.tasks[0])
            for name in spaces:
                found = mine.pop(name)
                features = [reader.pop(name) for reader in readers]
                for y, *values in zip(found, *features, strict=True):
                    _accumulate(sums[name], torch.cat(values, -1), y, known[name])
    return {name: _correlation(_reduced(sums[name], passes.accelerator)) for name in spaces}


def _accumulate(sums: Tensor, x: Tensor, y: Tensor, match: Match | DenseMatch) -> None:
    """Add a batch to the moments of every parent unit and of what the merged units give of it.

    Args:
        sums: Count, sums of x and y, and sums of x^2, y^2 and xy, `(6, N n)`; changed in place.
        x: Units of the N parents, `(B, P, N n)`.
        y: Merged units, `(B, P, m)`.
        match: Of the space; of a dropped unit, merged units give 0.
    """
    x = x.flatten(0, -2).double()
    y = y.flatten(0, -2).double()
    if isinstance(match, DenseMatch):
        y = y @ match.unmerge.to(y).T
    else:
        labels = match.labels
        y = y.index_select(1, labels.clamp(min=0).to(y.device)) * (labels >= 0).to(x)
    sums += torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(1)


def _correlation(sums: Tensor) -> float:
    """The mean correlation over the units that are not constant, from the sums of `_accumulate`."""
    x, y, xx, yy, xy = sums[1:] / sums[0]  # means
    spread = (xx - x * x).clamp(min=0) * (yy - y * y).clamp(min=0)
    alive = (xx - x * x > 1e-9 * xx) & (yy > 0)
    values = torch.where(spread > 0, (xy - x * y) / spread.clamp(min=1e-300).sqrt(), 0)
    return float(values[alive].clamp(-1, 1).mean()) if alive.any() else 0.0


def _reduced(sums: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum over all processes."""
    return sums if accelerator.num_processes == 1 else accelerator.reduce(sums, "sum")


def same_everywhere(accelerator: Accelerator, score: float) -> float:
    """The main process's score, so that all processes choose alike."""
    shared = [score]
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]

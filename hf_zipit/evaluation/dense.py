"""Per-task metrics of merges of models with different outputs, their parents and the ensemble."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cost, cost_of
from hf_zipit.data.dataset import Images
from hf_zipit.data.images import open_images
from hf_zipit.data.rows import TEST
from hf_zipit.data.targets import Targets, from_datasets, one_each, open_targets
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.classes import ANOTHER_COLUMN, Target, find_target
from hf_zipit.evaluation.detection import PLACES as BOX_METRICS
from hf_zipit.evaluation.detection import BoxTargets, box_scores, open_box_targets
from hf_zipit.evaluation.metrics import METRICS, OF_KIND, OF_PROBLEM, Metric
from hf_zipit.evaluation.results import Result, ensemble_cost, relative
from hf_zipit.evaluation.seen import SeenTargets
from hf_zipit.progress import progress
from hf_zipit.running import ANSWERS, device_of, working_copy
from hf_zipit.sources.source import DETECTION, Source

_log = logging.getLogger("hf_zipit")


class TaskMetrics:
    """An evaluation with targets: images with targets for every task, and the metrics that score its outputs.

    Args:
        heads: for each task, its name (`task`) and its `kind`.
        targets: for each task, its images with targets, in the order of the heads.
        size: (channels, height, width) of an input image, for the FLOPs.
        metrics: for each task, the names of its metrics (see `METRICS`); by default, those for its kind.
        device: where to run; by default, a GPU if one is available.

    Raises:
        OptionError: an unknown metric.
    """

    shared = False

    def __init__(
        self,
        heads: Sequence[Mapping[str, Any]],
        targets: Sequence[Targets | BoxTargets],
        size: tuple[int, int, int],
        *,
        metrics: Mapping[str, Sequence[str]] | None = None,
        device: str | None = None,
    ) -> None:
        self.size = size
        self.device = device_of(device, "cuda" if torch.cuda.is_available() else "cpu")
        tasks = [head["task"] for head in heads]
        unknown = [task for task in metrics or {} if task not in tasks]
        if unknown:
            raise OptionError(f"metrics are given for an unknown task '{unknown[0]}'; tasks: {', '.join(tasks)}")
        self.metrics = {head["task"]: _names(head, metrics or {}) for head in heads}
        self.targets = {head["task"]: mine for head, mine in zip(heads, targets, strict=True)}

    def result(self, name: str, merged: Merged) -> Result:
        """Measure one merge."""
        network = working_copy(merged, self.device)
        scores = {task: self._score(network, task, of_merge=True) for task in self.metrics}
        return _result(name, scores, cost_of(merged, self.size))

    def results(self, merged: Merged, parents: Sequence[Source]) -> list[Result]:
        """Measure a merge beside its parents and their ensemble.

        Raises:
            OptionError: there is not one parent for each task.
        """
        alone = self.of_parents(parents) if parents else []
        return [relative(row, alone) for row in (self.result("merged", merged), *alone)]

    def of_parents(self, parents: Sequence[Source]) -> list[Result]:
        """Measure every parent, and their ensemble.

        Raises:
            OptionError: there is not one parent for each task.
        """
        if len(parents) != len(self.metrics):
            raise OptionError(f"{len(parents)} parents for {len(self.metrics)} tasks: one for each task is needed")
        pairs = list(zip(self.metrics, parents, strict=True))
        scores = {task: self._score(working_copy(parent.model, self.device), task) for task, parent in pairs}
        costs = [cost_of(parent.model, self.size) for parent in parents]
        found = [
            _result(f"parent:{task}", {task: scores[task]}, cost) for (task, _), cost in zip(pairs, costs, strict=True)
        ]
        return [*found, _result("ensemble", scores, ensemble_cost(costs, [parent.model for parent in parents]))]

    def fingerprint(self) -> Any:
        """For each task, its metrics and a fingerprint of its images and targets."""
        return [[task, list(names), self.targets[task].fingerprint()] for task, names in self.metrics.items()]

    @torch.no_grad()
    def _score(self, model: nn.Module, task: str, of_merge: bool = False) -> dict[str, float]:
        """The metrics of one model on the images of a task; a merge is scored on its output for this task."""
        mine = self.targets[task]
        if isinstance(mine, BoxTargets):
            return box_scores(model, mine, self.metrics[task], of_merge, self.device)
        found: dict[str, Metric] = {name: METRICS[name]() for name in self.metrics[task]}
        label = f"Evaluating {task if of_merge else 'a parent'}"
        seen = SeenTargets(task)
        for pixels, targets in progress(mine, label):
            pixels = pixels.to(self.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
            output = model(pixels, tasks=task).task_outputs[task] if of_merge else model(pixels)
            answer = answer_of(output).float().cpu()
            seen.add(answer, targets)
            for metric in found.values():
                metric.update(answer, targets)
        seen.check()
        return {name: metric.value() for name, metric in found.items()}


def open_all_targets(
    heads: Sequence[Mapping[str, Any]],
    data: Any,
    transform: Any,
    num_images: int | Sequence[int] | None = None,
    batch_size: int = 64,
    processor: Any = None,
    **options: Any,
) -> list[Targets | BoxTargets]:
    """The images and targets of every task.

    Args:
        heads: for each task, its name (`task`), its `kind` and its classes (`id2label`).
        data: one data set for all tasks, or a list with one for each: labelled images for classifiers, images with
            objects for detectors (see `open_objects`), else see `open_targets`.
        transform: PIL image -> pixels `(channels, height, width)`.
        num_images: images per data set: one number for all, or one each.
        batch_size: images per forward pass.
        processor: the image processor of detectors.
        options: `channels`, `seed`, `skip_bad_images` and `label_column`, as for `open_images`.

    Raises:
        DataError: the data has no targets for a task.
        OptionError: there is not one data set for each task.
    """
    numbers = one_each(num_images, len(heads))
    found: list[Targets | BoxTargets] = []
    for head, part, number in zip(heads, one_each(data, len(heads)), numbers, strict=True):
        if head["kind"] == "image-classification" and from_datasets(part):
            images = open_images(part, transform, splits=TEST, num_images=number, **options)
            found.append(_classified(images, head, batch_size))
            continue
        if head["kind"] == DETECTION:
            found.append(open_box_targets(part, head, processor, num_images=number, **options))
            continue
        chosen = {**options, "num_images": number, "batch_size": batch_size}
        chosen["reduce_labels"] = head.get("reduce_labels", False)
        found.append(open_targets(part, head["kind"], transform, **chosen))
    return found


def _classified(images: Images, head: Mapping[str, Any], batch_size: int) -> Targets:
    """The images that count for a classifier, with their classes."""
    target = find_target(images, head)
    if target.problem != head.get("problem", "single-label"):
        raise DataError(
            f"{images.name}: the images have several labels, and task '{head['task']}' predicts one class; "
            f"{ANOTHER_COLUMN}"
        )
    if len(target.index) < len(images):
        _log.warning(
            "%s: %d of %d images are counted for task '%s'; the others have no label, or one of no class of it",
            *(images.name, len(target.index), len(images), head["task"]),
        )
    loader = DataLoader(_Classified(images, target), batch_size=batch_size)
    return Targets(loader, lambda: f"{images.fingerprint()} {target.values.tolist()}")


class _Classified(Dataset[tuple[Tensor, Tensor]]):
    """The images that count for a classifier, each with what is true of it."""

    def __init__(self, images: Images, target: Target) -> None:
        self.images = images
        self.target = target

    def __len__(self) -> int:
        return len(self.target.index)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[int(self.target.index[index])], self.target.values[index]


def _result(name: str, scores: dict[str, dict[str, float]], cost: Cost) -> Result:
    """The row of one model; the score of each task is its first metric."""
    tasks = {task: next(iter(found.values())) for task, found in scores.items()}
    return Result(name, cost.flops, cost.parameters, tasks, scores=scores)


def answer_of(output: Any) -> Tensor:
    """The prediction in a model's output: the output itself, its first entry, or the first known field (see `ANSWERS`).

    Raises:
        OptionError: the output has no such tensor.
    """
    if isinstance(output, Mapping):
        output = next((output[name] for name in ANSWERS if output.get(name) is not None), output)
    if isinstance(output, list | tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise OptionError(f"a {type(output).__name__} cannot be scored: it holds none of {', '.join(ANSWERS)}")
    return output


def _names(head: Mapping[str, Any], metrics: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The names of the metrics of one task."""
    names = metrics.get(head["task"], OF_PROBLEM.get(head.get("problem", ""), OF_KIND.get(head["kind"], ())))
    known = BOX_METRICS if head["kind"] == DETECTION else METRICS
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        what = f"unknown metric '{unknown[0]}'" if unknown else f"no metric is known for {head['kind']}"
        raise OptionError(f"task '{head['task']}': {what}; metrics: {', '.join(known)}")
    return names

"""Per-task metrics of merges of models with different outputs, their parents and the ensemble."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cost, cost_of
from hf_zipit.data.targets import Targets, one_each, open_targets
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.metrics import LOWER_IS_BETTER, METRICS, OF_KIND, Metric
from hf_zipit.evaluation.results import Result, ensemble_cost
from hf_zipit.progress import progress
from hf_zipit.running import device_of, working_copy
from hf_zipit.sources.source import Source

ANSWERS = ("logits", "predicted_depth", "reconstruction", "last_hidden_state")


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
        targets: Sequence[Targets],
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

    @torch.inference_mode()
    def _score(self, model: nn.Module, task: str, of_merge: bool = False) -> dict[str, float]:
        """The metrics of one model on the images of a task; a merge is scored on its output for this task."""
        found: dict[str, Metric] = {name: METRICS[name]() for name in self.metrics[task]}
        label = f"Evaluating {task if of_merge else 'a parent'}"
        for pixels, targets in progress(self.targets[task], label):
            pixels = pixels.to(self.device, next(model.parameters()).dtype, memory_format=torch.channels_last)
            output = model(pixels, tasks=task).task_outputs[task] if of_merge else model(pixels)
            for metric in found.values():
                metric.update(answer_of(output).float().cpu(), targets)
        return {name: metric.value() for name, metric in found.items()}


def open_all_targets(
    heads: Sequence[Mapping[str, Any]],
    data: Any,
    transform: Any,
    num_images: int | Sequence[int] | None = None,
    **options: Any,
) -> list[Targets]:
    """The images and targets of every task.

    Args:
        heads: for each task, its `kind`.
        data: one data set for all tasks, or a list with one for each (see `open_targets`).
        transform: PIL image -> pixels `(channels, height, width)`.
        options: `num_images`, `batch_size` and `seed`, as for `open_targets`.

    Raises:
        DataError: the data has no targets for a task.
        OptionError: there is not one data set for each task.
    """
    numbers = one_each(num_images, len(heads))
    parts = zip(heads, one_each(data, len(heads)), numbers, strict=True)
    return [open_targets(part, head["kind"], transform, num_images=number, **options) for head, part, number in parts]


def relative(row: Result, parents: Sequence[Result]) -> Result:
    """The row with its average relative to the parents: the mean ratio of its first metrics to theirs; 1 is as good.

    For a metric where lower is better, the ratio is the parent's value over the row's.

    Args:
        row: the row of a merge, a parent or the ensemble.
        parents: the rows of the parents; others are ignored.
    """
    alone = {task: value for parent in parents if not parent.merged for task, value in parent.tasks.items()}
    shares = []
    for task, value in row.tasks.items():
        if task in alone:
            metric = next(iter(row.scores[task]))
            above, below = (alone[task], value) if metric in LOWER_IS_BETTER else (value, alone[task])
            shares.append(above / below if below else float("nan"))
    return replace(row, average=sum(shares) / len(shares) if shares else None)


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
    names = metrics.get(head["task"], OF_KIND.get(head["kind"], ()))
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        what = f"unknown metric '{unknown[0]}'" if unknown else f"no metric is known for {head['kind']}"
        raise OptionError(f"task '{head['task']}': {what}; metrics: {', '.join(METRICS)}")
    return names

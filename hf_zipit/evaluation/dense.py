"""Each task's own metrics of a merge of models of several classes, beside its parents and their ensemble."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.costs import count_flops
from hf_zipit.data.targets import Batches, one_each, open_targets
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.metrics import METRICS, OF_KIND, Metric
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.progress import progress
from hf_zipit.running import device_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.sources.whole_models import preprocessing_of_tasks

ANSWERS = ("logits", "predicted_depth", "reconstruction", "last_hidden_state")


@dataclass(frozen=True)
class TaskRow:
    """One line of the results: task -> metric -> value, FLOPs of one forward of one image, and parameters."""

    model: str
    scores: dict[str, dict[str, float]]
    flops: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def evaluate_tasks(
    merged: ZipItModel,
    data: Any,
    *,
    parents: Sequence[Source] = (),
    metrics: Mapping[str, Sequence[str]] | None = None,
    num_images: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
) -> list[TaskRow]:
    """Evaluate a merge whose tasks have outputs of different kinds, each by metrics of its own.

    Args:
        merged: the merged model.
        data: images with targets: one data set for all tasks or a list with one for each (see `open_targets`).
        parents: the source models, in task order.
        metrics: for each task the names of its metrics (see `METRICS`); by default those of its kind.
        num_images: images per data set, chosen by the seed.
        batch_size: images per forward pass.
        seed: chooses the images.
        device: where to run; a GPU if there is one.

    Raises:
        DataError: the data has no targets for a task.
        OptionError: an unknown metric, or not one parent for each task.

    >>> rows = evaluate_tasks(merged, ["user/scenes", "user/scenes-masks"])  # doctest: +SKIP
    """
    heads = merged.config.heads or []
    if parents and len(parents) != len(heads):
        raise OptionError(f"{len(parents)} parents for {len(heads)} tasks: one for each task is needed")
    where = device_of(device, "cuda" if torch.cuda.is_available() else "cpu")
    size, transform = preprocessing_of_tasks(merged)
    network, rows = working_copy(merged, where), []
    scores: list[dict[str, dict[str, float]]] = [{}, {}]  # of the merge, of the parents
    for number, (head, part) in enumerate(zip(heads, one_each(data, len(heads)), strict=True)):
        task, names = head["task"], _names(head, metrics or {})
        options: dict[str, Any] = {"num_images": num_images, "batch_size": batch_size, "seed": seed}
        batches = open_targets(part, head["kind"], transform, **options)
        scores[0][task] = _score(network, batches, names, where, task)
        if parents:
            scores[1][task] = _score(working_copy(parents[number].model, where), batches, names, where)
    rows.append(TaskRow("merged", scores[0], *_cost(merged, size)))
    costs = [_cost(parent.model, size) for parent in parents]
    for head, cost in zip(heads, costs, strict=False):
        rows.append(TaskRow(f"parent:{head['task']}", {head["task"]: scores[1][head["task"]]}, *cost))
    if parents:
        rows.append(TaskRow("ensemble", scores[1], sum(f for f, _ in costs), sum(p for _, p in costs)))
    return rows


def answer_of(output: Any) -> Tensor:
    """The prediction in what a model returns: the first tensor, or the field that its kind of output is named for."""
    if isinstance(output, Mapping):
        output = next((output[name] for name in ANSWERS if output.get(name) is not None), output)
    if isinstance(output, list | tuple):
        output = output[0]
    if not isinstance(output, Tensor):
        raise OptionError(f"a {type(output).__name__} cannot be scored: it holds none of {', '.join(ANSWERS)}")
    return output


def _names(head: Mapping[str, Any], metrics: Mapping[str, Sequence[str]]) -> Sequence[str]:
    names = metrics.get(head["task"], OF_KIND.get(head["kind"], ()))
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        what = f"unknown metric '{unknown[0]}'" if unknown else f"no metric is known for {head['kind']}"
        raise OptionError(f"task '{head['task']}': {what}; metrics: {', '.join(METRICS)}")
    return names


@torch.inference_mode()
def _score(
    model: nn.Module, batches: Batches, names: Sequence[str], device: torch.device, task: str | None = None
) -> dict[str, float]:
    """The metrics of one model on one data set; of a merge its answers for one task."""
    found: dict[str, Metric] = {name: METRICS[name]() for name in names}
    for pixels, targets in progress(batches, f"Evaluating {task or 'a parent'}"):
        pixels = pixels.to(device, next(model.parameters()).dtype, memory_format=torch.channels_last)
        output = model(pixels) if task is None else model(pixels, tasks=task).task_outputs[task]
        for metric in found.values():
            metric.update(answer_of(output).float().cpu(), targets)
    return {name: metric.value() for name, metric in found.items()}


def _cost(model: nn.Module, size: tuple[int, int, int]) -> tuple[int, int]:
    return count_flops(model, size), sum(parameter.numel() for parameter in model.parameters())

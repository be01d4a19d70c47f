"""Accuracy of a merged model beside its parents and their ensemble."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_zipit.chain import count_flops, device_of, logits_of, working_copy
from hf_zipit.data import TEST, Images, open_all
from hf_zipit.errors import DataError, OptionError
from hf_zipit.libraries import Source, preprocessing_of
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.progress import progress

Outputs = list[dict[str, Tensor]]  # one entry per data set: task -> logits (images, classes of the task)


@dataclass(frozen=True)
class Row:
    """One line of the results: accuracies are fractions, FLOPs are of one forward of one image.

    `tasks` is the accuracy on each task's images among that task's classes, `average` their mean, `joint` the
    accuracy on all tasks' images among all classes (softmax per task, argmax over all; ZipIt!, section 5).
    """

    model: str
    tasks: dict[str, float]
    average: float
    joint: float
    flops: int
    parameters: int

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Target:
    """The images of one task: which data set, which of its images, and their classes."""

    part: int
    index: Tensor
    classes: Tensor


def evaluate(
    merged: ZipItForImageClassification,
    data: Any,
    *,
    parents: Sequence[Source] = (),
    num_images: int | Sequence[int] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
) -> list[Row]:
    """Evaluate a merged model, and its parents and their ensemble where they are given.

    Args:
        merged: the merged model.
        data: labelled images: one data set for all tasks or a list with one for each. Labels are matched to each
            task's classes by name, or by number where the data set or the model has no names; images of other
            classes are left out.
        parents: the source models, in task order.
        num_images: images per data set, chosen by the seed: one number for all, or one each.
        batch_size: images per forward pass.
        seed: chooses the images.
        device: where to run; a GPU if there is one.

    Raises:
        DataError: the data has no labels, or none that belong to a task.
        OptionError: not one parent for each task.

    >>> rows = evaluate(merged, ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    tasks = merged.config.tasks
    if parents and len(parents) != len(tasks):
        raise OptionError(f"{len(parents)} parents for {len(tasks)} tasks: one for each task is needed")
    where = device_of(device, "cuda" if torch.cuda.is_available() else "cpu")
    size, transform = preprocessing_of(merged)
    images = open_all(data, len(tasks), transform, splits=TEST, num_images=num_images, seed=seed)
    heads = merged.config.heads or []
    targets = [_target(images, min(k, len(images) - 1), head) for k, head in enumerate(heads)]
    models: list[nn.Module] = [merged, *(parent.model for parent in parents)]
    outputs = _run(models, tasks, images, batch_size, where)
    costs = [(count_flops(m, size), sum(p.numel() for p in m.parameters())) for m in models]
    rows = [_row("merged", outputs[0], targets, tasks, costs[0])]
    if not parents:
        return rows
    rows += [
        _row(f"parent:{task}", output, targets, tasks, cost)
        for task, output, cost in zip(tasks, outputs[1:], costs[1:], strict=True)
    ]
    ensemble = [{k: v for part in parts for k, v in part.items()} for parts in zip(*outputs[1:], strict=True)]
    total = (sum(flops for flops, _ in costs[1:]), sum(parameters for _, parameters in costs[1:]))
    return [*rows, _row("ensemble", ensemble, targets, tasks, total)]


def _target(images: Sequence[Images], part: int, head: Mapping[str, Any]) -> _Target:
    """Which images of a data set belong to a task, and as which class."""
    data, names, task = images[part], head["id2label"], head["task"]
    if all(label is None for label in data.labels):
        raise DataError(f"{data.name} has no label column: accuracy needs labels")
    classes: dict[int, int] = {i: i for i in names}
    if data.names is not None and not all(str(name) == f"LABEL_{i}" for i, name in names.items()):
        ids = {name: i for i, name in names.items()}
        classes = {i: ids[name] for i, name in enumerate(data.names) if name in ids}
        if not classes:
            raise DataError(
                f"{data.name} has none of the classes of task '{task}': its classes are {_some(data.names)}, "
                f"the task's are {_some(list(names.values()))}"
            )
    index = [i for i, label in enumerate(data.labels) if label in classes]
    if not index:
        raise DataError(f"{data.name} holds no image of a class of task '{task}'")
    return _Target(part, torch.tensor(index), torch.tensor([classes[data.labels[i] or 0] for i in index]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@torch.inference_mode()
def _run(
    models: Sequence[nn.Module], tasks: Sequence[str], images: Sequence[Images], batch_size: int, device: torch.device
) -> list[Outputs]:
    """Every model on every image, each image decoded once; the first model is the merged one."""
    models = [working_copy(model, device) for model in models]
    outputs: list[Outputs] = [[] for _ in models]
    for part in images:
        pieces: list[list[dict[str, Tensor]]] = [[] for _ in models]
        for pixels in progress(DataLoader(part, batch_size=batch_size), f"Evaluating on {part.name}"):
            pixels = pixels.to(device, next(models[0].parameters()).dtype, memory_format=torch.channels_last)
            pieces[0].append({task: value.cpu() for task, value in models[0](pixels).task_logits.items()})
            for task, model, piece in zip(tasks, models[1:], pieces[1:], strict=False):
                piece.append({task: logits_of(model(pixels)).cpu()})
        for output, piece in zip(outputs, pieces, strict=True):
            output.append({task: torch.cat([p[task] for p in piece]) for task in piece[0]})
    return outputs


def _row(name: str, outputs: Outputs, targets: Sequence[_Target], tasks: Sequence[str], cost: tuple[int, int]) -> Row:
    """Score one model; a parent only answers with its own task's classes."""
    accuracy, hits, images = {}, 0, 0
    for task, target in zip(tasks, targets, strict=True):
        logits = {t: value[target.index] for t, value in outputs[target.part].items()}
        images += len(target.index)
        if task not in logits:
            continue
        accuracy[task] = float((logits[task].argmax(-1) == target.classes).double().mean())
        joint = torch.cat([value.log_softmax(-1) for value in logits.values()], -1).argmax(-1)
        offset = sum(value.shape[-1] for value in list(logits.values())[: list(logits).index(task)])
        hits += int((joint == target.classes + offset).sum())
    return Row(name, accuracy, sum(accuracy.values()) / len(accuracy), hits / images, *cost)

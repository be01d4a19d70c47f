"""Accuracy of a merged model beside its parents and their ensemble."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_zipit.costs import count_flops
from hf_zipit.data.images import Images, open_all
from hf_zipit.data.rows import TEST
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.protocols import ClassEmbeddings, Protocol, own_classes
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.progress import progress
from hf_zipit.running import device_of, logits_of, working_copy
from hf_zipit.sources.libraries import preprocessing_of
from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")
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
    class_ids: Sequence[Sequence[int]] | None = None,
    class_embeddings: ClassEmbeddings | None = None,
) -> list[Row]:
    """Evaluate a merged model, and its parents and their ensemble where they are given.

    Args:
        merged: the merged model.
        data: labelled images: one data set for all tasks or a list with one for each. Labels are matched to each
            task's classes by name, or by number where the data set or the model has no names; images of other
            classes are left out.
        parents: the source models, in task order; one that is a merge stands for all its tasks.
        num_images: images per data set, chosen by the seed: one number for all, or one each.
        batch_size: images per forward pass.
        seed: chooses the images.
        device: where to run; a GPU if there is one.
        class_ids: for each task the data set's label of each of its classes, where they are matched by neither name
            nor number: splits of one data set, of any sizes.
        class_embeddings: compare the models' outputs with these instead of taking them for logits.

    Raises:
        DataError: the data has no labels, or none that belong to a task.
        OptionError: not one parent for each task.

    >>> rows = evaluate(merged, ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    tasks, parents = merged.config.tasks, [one for parent in parents for one in parent.alone()]
    if parents and len(parents) != len(tasks):
        raise OptionError(f"{len(parents)} parents for {len(tasks)} tasks: one for each task is needed")
    size, transform = preprocessing_of(merged)
    images = open_all(data, len(tasks), transform, splits=TEST, num_images=num_images, seed=seed)
    heads = merged.config.heads or []
    evaluation = Evaluation(heads, images, size, batch_size, device, class_ids, class_embeddings)
    pairs = [(parent.model, task) for parent, task in zip(parents, tasks, strict=False)]
    outputs = evaluation.outputs([(merged, None), *pairs])
    rows = [evaluation.row("merged", outputs[0], evaluation.cost(merged))]
    return rows + evaluation.rows_of_parents(parents, outputs[1:]) if parents else rows


class Evaluation:
    """Labelled images of all tasks, and the protocol that turns outputs on them into answers.

    Args:
        heads: for each task its name (`task`) and its classes (`id2label`).
        images: one data set for all tasks, or one for each.
        size: of an input image, for the FLOPs.
        batch_size, device, class_ids, class_embeddings: as for `evaluate`.

    Raises:
        DataError: the data has no labels, or none that belong to a task.
        OptionError: not a list of class ids for each task.
    """

    def __init__(
        self,
        heads: Sequence[Mapping[str, Any]],
        images: Sequence[Images],
        size: tuple[int, int, int],
        batch_size: int = 64,
        device: str | None = None,
        class_ids: Sequence[Sequence[int]] | None = None,
        class_embeddings: ClassEmbeddings | None = None,
    ) -> None:
        self.tasks, self.images, self.size, self.batch_size = [h["task"] for h in heads], images, size, batch_size
        self.device = device_of(device, "cuda" if torch.cuda.is_available() else "cpu")
        self.protocol: Protocol = class_embeddings or own_classes
        if class_ids is not None and len(class_ids) != len(heads):
            raise OptionError(f"{len(class_ids)} lists of class ids for {len(heads)} tasks: one for each is needed")
        self.targets = []
        for k, head in enumerate(heads):
            part = min(k, len(images) - 1)
            if class_embeddings is not None:
                classes = class_embeddings.classes(head["task"])
            elif class_ids is not None:
                classes = {label: number for number, label in enumerate(class_ids[k])}
            else:
                classes = _classes(images[part], head)
            self.targets.append(_target(images, part, head["task"], classes))

    @torch.inference_mode()
    def outputs(self, models: Sequence[tuple[nn.Module, str | None]]) -> list[Outputs]:
        """Every model on every image, each image decoded once.

        A model comes with the task that its output is for, a merged model, which has one for each, with `None`.
        """
        copies = [(working_copy(model, self.device), task) for model, task in models]
        found: list[Outputs] = [[] for _ in models]
        for part in self.images:
            pieces: list[list[dict[str, Tensor]]] = [[] for _ in models]
            for pixels in progress(DataLoader(part, batch_size=self.batch_size), f"Evaluating on {part.name}"):
                pixels = pixels.to(self.device, memory_format=torch.channels_last)
                for (model, task), piece in zip(copies, pieces, strict=True):
                    answer = model(pixels.to(next(model.parameters()).dtype))
                    logits = answer.task_logits if task is None else {task: logits_of(answer)}
                    piece.append({name: value.cpu() for name, value in logits.items()})
            for output, piece in zip(found, pieces, strict=True):
                output.append({task: torch.cat([p[task] for p in piece]) for task in piece[0]})
        return found

    def cost(self, model: nn.Module) -> tuple[int, int]:
        """FLOPs of one image, and parameters."""
        return count_flops(model, self.size), sum(parameter.numel() for parameter in model.parameters())

    def row(self, name: str, outputs: Outputs, cost: tuple[int, int]) -> Row:
        """Score one model; a parent only answers with its own task's classes."""
        accuracy, hits, images = {}, 0, 0
        for task, target in zip(self.tasks, self.targets, strict=True):
            mine = {t: value[target.index] for t, value in outputs[target.part].items()}
            images += len(target.index)
            if task not in mine:
                continue
            scores, joint = self.protocol(mine)
            accuracy[task] = float((scores[task].argmax(-1) == target.classes).double().mean())
            offset = sum(value.shape[-1] for value in list(scores.values())[: list(scores).index(task)])
            hits += int((joint.argmax(-1) == target.classes + offset).sum())
        return Row(name, accuracy, sum(accuracy.values()) / len(accuracy), hits / images, *cost)

    def rows_of_parents(self, parents: Sequence[Source], outputs: Sequence[Outputs] | None = None) -> list[Row]:
        """Every parent alone, and their ensemble; `outputs` where they have been run."""
        parents = [one for parent in parents for one in parent.alone()]
        pairs = zip(parents, self.tasks, strict=True)
        outputs = outputs or self.outputs([(parent.model, task) for parent, task in pairs])
        costs = [self.cost(parent.model) for parent in parents]
        rows = [
            self.row(f"parent:{task}", output, cost)
            for task, output, cost in zip(self.tasks, outputs, costs, strict=True)
        ]
        ensemble = [{k: v for part in parts for k, v in part.items()} for parts in zip(*outputs, strict=True)]
        networks = [getattr(parent.model, "network", parent.model) for parent in parents]
        each = {id(network): cost for network, cost in zip(networks, costs, strict=True)}  # a merge runs once for all
        total = (sum(flops for flops, _ in each.values()), sum(parameters for _, parameters in each.values()))
        return [*rows, self.row("ensemble", ensemble, total)]


def _classes(data: Images, head: Mapping[str, Any]) -> dict[int, int]:
    """The data set's label -> the number of the class in a task, by name or by number."""
    names, task = head["id2label"], head["task"]
    if data.names is None or all(str(name) == f"LABEL_{i}" for i, name in names.items()):
        nameless = data.name if data.names is None else f"the model of task '{task}'"
        _log.warning("%s has no class names: the labels of %s are taken as class numbers", nameless, data.name)
        return {i: i for i in names}
    ids = {name: i for i, name in names.items()}
    classes = {i: ids[name] for i, name in enumerate(data.names) if name in ids}
    if not classes:
        raise DataError(
            f"{data.name} has none of the classes of task '{task}': its classes are {_some(data.names)}, "
            f"the task's are {_some(list(names.values()))}"
        )
    return classes


def _target(images: Sequence[Images], part: int, task: str, classes: Mapping[int, int]) -> _Target:
    """Which images of a data set belong to a task, and as which class."""
    data = images[part]
    if all(label is None for label in data.labels):
        raise DataError(f"{data.name} has no label column: accuracy needs labels")
    index = [i for i, label in enumerate(data.labels) if label in classes]
    if not index:
        raise DataError(f"{data.name} holds no image of a class of task '{task}'")
    return _Target(part, torch.tensor(index), torch.tensor([classes[data.labels[i] or 0] for i in index]))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

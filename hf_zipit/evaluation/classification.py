"""Accuracy of merged classifiers, their parents and the ensemble."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cost, cost_of
from hf_zipit.data.images import Images
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.protocols import ClassEmbeddings, Protocol, own_classes
from hf_zipit.evaluation.results import Result, ensemble_cost, mean
from hf_zipit.progress import progress
from hf_zipit.running import device_of, logits_of, working_copy
from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")
Outputs = list[dict[str, Tensor]]  # one entry per data set: task -> logits (images, classes of the task)


@dataclass(frozen=True)
class _Target:
    """The images of one task.

    Attributes:
        part: the position of their data set.
        index: the positions of the images in the data set, `(images,)`.
        classes: the class of each image within the task, `(images,)`.
    """

    part: int
    index: Tensor
    classes: Tensor


class Classification:
    """An evaluation of classifiers: labelled images of all tasks, and a protocol from outputs to class scores.

    Args:
        heads: for each task, its name (`task`) and its classes (`id2label`).
        images: one data set for all tasks, or one for each.
        size: (channels, height, width) of an input image, for the FLOPs.
        batch_size: images per forward pass.
        device: where to run; by default, a GPU if one is available.
        class_ids: for each task, the data set's label for each of its classes; see `evaluate`.
        class_embeddings: see `evaluate`.

    Raises:
        DataError: the data has no labels, or none that belong to a task.
        OptionError: there is not one list of class ids for each task.
    """

    shared = False

    def __init__(
        self,
        heads: Sequence[Mapping[str, Any]],
        images: Sequence[Images],
        size: tuple[int, int, int],
        *,
        batch_size: int = 64,
        device: str | None = None,
        class_ids: Sequence[Sequence[int]] | None = None,
        class_embeddings: ClassEmbeddings | None = None,
    ) -> None:
        self.tasks = [head["task"] for head in heads]
        self.images = images
        self.size = size
        self.batch_size = batch_size
        self.device = device_of(device, "cuda" if torch.cuda.is_available() else "cpu")
        self.protocol: Protocol = class_embeddings or own_classes
        if class_ids is not None and len(class_ids) != len(heads):
            raise OptionError(f"{len(class_ids)} lists of class ids for {len(heads)} tasks: one for each is needed")
        self.targets = []
        for number, head in enumerate(heads):
            part = min(number, len(images) - 1)
            if class_embeddings is not None:
                classes = class_embeddings.classes(head["task"])
            elif class_ids is not None:
                classes = {label: place for place, label in enumerate(class_ids[number])}
            else:
                classes = _classes(images[part], head)
            self.targets.append(_target(images, part, head["task"], classes))

    def result(self, name: str, merged: Merged) -> Result:
        """Measure one merge."""
        (outputs,) = self.outputs([(merged, None)])
        return self._scored(name, outputs, cost_of(merged, self.size))

    def results(self, merged: Merged, parents: Sequence[Source]) -> list[Result]:
        """Measure a merge beside its parents and their ensemble, each image decoded once.

        Raises:
            OptionError: there is not one parent for each task.
        """
        parents = [one for parent in parents for one in parent.alone()]
        if parents and len(parents) != len(self.tasks):
            raise OptionError(f"{len(parents)} parents for {len(self.tasks)} tasks: one for each task is needed")
        pairs = [(parent.model, task) for parent, task in zip(parents, self.tasks, strict=False)]
        outputs = self.outputs([(merged, None), *pairs])
        found = [self._scored("merged", outputs[0], cost_of(merged, self.size))]
        return found + self._of_parents(parents, outputs[1:]) if parents else found

    def of_parents(self, parents: Sequence[Source]) -> list[Result]:
        """Measure every parent on the classes of its own task, and their ensemble."""
        parents = [one for parent in parents for one in parent.alone()]
        pairs = [(parent.model, task) for parent, task in zip(parents, self.tasks, strict=True)]
        return self._of_parents(parents, self.outputs(pairs))

    def fingerprint(self) -> Any:
        """Fingerprints of the images, and their labels."""
        return [[part.fingerprint() for part in self.images], [list(part.labels) for part in self.images]]

    @torch.inference_mode()
    def outputs(self, models: Sequence[tuple[nn.Module, str | None]]) -> list[Outputs]:
        """The outputs of every model on every image; each image is decoded once.

        Args:
            models: each model with the task of its output; `None` for a merged model, which has an output per task.

        Returns:
            For each model, one entry per data set: task -> logits `(images, classes of the task)`.
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

    def _scored(self, name: str, outputs: Outputs, cost: Cost) -> Result:
        """The row of one model. A parent predicts only classes of its own task, so it is wrong on all other images."""
        accuracy: dict[str, float] = {}
        hits = images = 0
        for task, target in zip(self.tasks, self.targets, strict=True):
            mine = {t: value[target.index] for t, value in outputs[target.part].items()}
            images += len(target.index)
            if task not in mine:
                continue
            scores, joint = self.protocol(mine)
            accuracy[task] = float((scores[task].argmax(-1) == target.classes).double().mean())
            offset = sum(value.shape[-1] for value in list(scores.values())[: list(scores).index(task)])
            hits += int((joint.argmax(-1) == target.classes + offset).sum())
        return Result(name, cost.flops, cost.parameters, accuracy, mean(accuracy), hits / images)

    def _of_parents(self, parents: Sequence[Source], outputs: Sequence[Outputs]) -> list[Result]:
        """The rows of the parents and their ensemble, from the parents' outputs."""
        costs = [cost_of(parent.model, self.size) for parent in parents]
        found = [
            self._scored(f"parent:{task}", output, cost)
            for task, output, cost in zip(self.tasks, outputs, costs, strict=True)
        ]
        together = [{k: v for part in parts for k, v in part.items()} for parts in zip(*outputs, strict=True)]
        networks = [getattr(parent.model, "network", parent.model) for parent in parents]
        return [*found, self._scored("ensemble", together, ensemble_cost(costs, networks))]


def _classes(data: Images, head: Mapping[str, Any]) -> dict[int, int]:
    """Maps each label of the data set to a class index of the task, by name if both have names, else by number."""
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
    """The images of a data set that belong to a task, with their classes."""
    data = images[part]
    if all(label is None for label in data.labels):
        raise DataError(f"{data.name} has no label column: accuracy needs labels")
    index = [i for i, label in enumerate(data.labels) if label in classes]
    if not index:
        raise DataError(f"{data.name} holds no image of a class of task '{task}'")
    return _Target(part, torch.tensor(index), torch.tensor([classes[data.labels[i] or 0] for i in index]))


def _some(names: Sequence[str]) -> str:
    """The first names, and how many follow."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

"""Accuracy of merged classifiers, their parents and the ensemble."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cost, cost_of
from hf_zipit.data.dataset import Images
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.evaluation.classes import Target, find_target
from hf_zipit.evaluation.protocols import ClassEmbeddings, Protocol, own_classes
from hf_zipit.evaluation.results import Result, ensemble_cost, mean, relative
from hf_zipit.evaluation.scores import scores_of
from hf_zipit.progress import progress
from hf_zipit.running import device_of, logits_of, working_copy
from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")
Outputs = list[dict[str, Tensor]]  # one entry per data set: task -> logits (images, classes of the task)


class Classification:
    """An evaluation of classifiers: labelled images of all tasks, and a protocol from outputs to class scores.

    Tasks are measured by accuracy. If the outputs of one are no classes, each task has its own metrics, and a row's
    average is relative to the parents. A joint accuracy exists only if every task predicts one class of several.

    Args:
        heads: for each task, its name (`task`) and its classes (`id2label`).
        images: one data set for all tasks, or one for each.
        size: (channels, height, width) of an input image, for the FLOPs.
        batch_size: images per forward pass.
        device: where to run; by default, a GPU if one is available.
        class_ids: for each task, the data set's label for each of its classes; see `evaluate`.
        class_embeddings: see `evaluate`.

    Attributes:
        targets: for each task, its images and their labels.
        joint: whether a joint accuracy exists.
        accuracies: whether every task is measured by an accuracy.

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
        if class_ids is not None:
            _check_ids(class_ids, heads)
        self.targets: list[Target] = []
        for number, head in enumerate(heads):
            part = min(number, len(images) - 1)
            classes = None
            if class_embeddings is not None:
                classes = class_embeddings.classes(head["task"])
            elif class_ids is not None:
                classes = {label: place for place, label in enumerate(class_ids[number])}
            self.targets.append(find_target(images[part], head, part, classes))
        problems = {target.problem for target in self.targets}
        self.joint = problems == {"single-label"}
        self.accuracies = problems <= {"single-label", "binary"}
        self._say_uncounted()

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
        if parents:
            found += self._of_parents(parents, outputs[1:])
        return found if self.accuracies else [relative(row, found) for row in found]

    def of_parents(self, parents: Sequence[Source]) -> list[Result]:
        """Measure every parent on the classes of its own task, and their ensemble."""
        parents = [one for parent in parents for one in parent.alone()]
        pairs = [(parent.model, task) for parent, task in zip(parents, self.tasks, strict=True)]
        return self._of_parents(parents, self.outputs(pairs))

    def fingerprint(self) -> Any:
        """Fingerprints of the images, and their labels."""
        labels = [
            [[column.column, list(column.values), column.names] for column in part.labels] for part in self.images
        ]
        return [[part.fingerprint() for part in self.images], labels]

    @torch.no_grad()
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
            loader = DataLoader(part, batch_size=self.batch_size)
            for pixels in progress(loader, f"Evaluating on {part.name}", images=self.batch_size):
                pixels = pixels.to(self.device, memory_format=torch.channels_last)
                for (model, task), piece in zip(copies, pieces, strict=True):
                    answer = model(pixels.to(next(model.parameters()).dtype))
                    logits = answer.task_logits if task is None else {task: logits_of(answer)}
                    piece.append({name: value.cpu() for name, value in logits.items()})
            for output, piece in zip(found, pieces, strict=True):
                output.append({task: torch.cat([p[task] for p in piece]) for task in piece[0]})
            for output in found:
                _check_finite(output[-1], part.name)
        return found

    def _scored(self, name: str, outputs: Outputs, cost: Cost) -> Result:
        """The row of one model. A parent predicts only classes of its own task, so it is wrong on all other images."""
        scores: dict[str, dict[str, float]] = {}
        counted: dict[str, int] = {}
        hits = images = 0
        for task, target in zip(self.tasks, self.targets, strict=True):
            mine = {t: value[target.index] for t, value in outputs[target.part].items()}
            images += len(target.index)
            if task not in mine:
                continue
            answers, joint = self.protocol(mine)
            scores[task] = scores_of(target.problem, answers[task], target.values)
            counted[task] = len(target.index)
            offset = sum(value.shape[-1] for value in list(answers.values())[: list(answers).index(task)])
            hits += int((joint.argmax(-1) == target.values + offset).sum()) if self.joint else 0
        main = {task: next(iter(found.values())) for task, found in scores.items()}
        row = Result(name, cost.flops, cost.parameters, main, images=counted)
        if not self.accuracies:
            return replace(row, scores=scores)
        return replace(row, average=mean(main), joint=hits / images if self.joint else None)

    def _of_parents(self, parents: Sequence[Source], outputs: Sequence[Outputs]) -> list[Result]:
        """The rows of the parents and their ensemble, from the parents' outputs."""
        costs = [cost_of(parent.model, self.size) for parent in parents]
        found = [
            self._scored(f"parent:{task}", output, cost)
            for task, output, cost in zip(self.tasks, outputs, costs, strict=True)
        ]
        if len(parents) == 1:  # whose ensemble it is itself
            return found
        together = [{k: v for part in parts for k, v in part.items()} for parts in zip(*outputs, strict=True)]
        networks = [getattr(parent.model, "network", parent.model) for parent in parents]
        return [*found, self._scored("ensemble", together, ensemble_cost(costs, networks))]

    def _say_uncounted(self) -> None:
        """Warn of images that no task counts."""
        for number, part in enumerate(self.images):
            counted = {i for target in self.targets if target.part == number for i in target.index.tolist()}
            if len(counted) < len(part):
                _log.warning(
                    "%s: %d of %d images are counted; the others have no label, or one of no task (another column: "
                    "--label-column)",
                    *(part.name, len(counted), len(part)),
                )


def _check_ids(class_ids: Sequence[Sequence[int]], heads: Sequence[Mapping[str, Any]]) -> None:
    """Refuse class ids that are not different, or more than the classes of their task.

    Raises:
        OptionError: the message names the task.
    """
    if len(class_ids) != len(heads):
        raise OptionError(f"{len(class_ids)} lists of class ids for {len(heads)} tasks: one for each is needed")
    for ids, head in zip(class_ids, heads, strict=True):
        classes = len(head["id2label"])
        if len(ids) > classes or len(set(ids)) < len(ids):
            raise OptionError(f"class ids {list(ids)} of task '{head['task']}': give {classes} different ids")
        if len(ids) < classes:
            _log.warning(
                "task '%s': the last %d of its classes have no id; give each one in %s.ids of --class-embeddings",
                *(head["task"], classes - len(ids), head["task"]),
            )


def _check_finite(outputs: Mapping[str, Tensor], data: str) -> None:
    """Refuse outputs that are no numbers, whose largest one means nothing.

    Raises:
        SourceError: the message names the task.
    """
    for task, value in outputs.items():
        if not value.isfinite().all():
            raise SourceError(f"the outputs of task '{task}' on {data} are not finite; check its weights")

"""Metrics of a comparison: scores if there are labels or targets, otherwise agreement with the parents."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_zipit.assembly.parents import Merged, mask_settings
from hf_zipit.costs import cost_of
from hf_zipit.data.batches import Passes
from hf_zipit.data.dataset import Images
from hf_zipit.data.rows import TEST
from hf_zipit.evaluation.classification import Classification
from hf_zipit.evaluation.dense import TaskMetrics, open_all_targets
from hf_zipit.evaluation.fidelity import distance
from hf_zipit.evaluation.results import Evaluation, Result, ensemble_cost, mean
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.source import DETECTION, Source

CLASSES = ("image-classification", "image-segmentation")


def open_evaluation(
    merger: Merger, data: Any, targets: Any, num_images: int | Sequence[int] | None, batch_size: int
) -> Evaluation:
    """Open the evaluation that measures every merge of a comparison.

    Args:
        merger: the models, with the images for the statistics.
        data: images. If all have labels, classifiers are evaluated by accuracy. `None` uses the merger's images.
        targets: images with targets, for tasks with outputs of different kinds; see `open_targets`.
        num_images: images per data set: one number for all, or one each.
        batch_size: images per forward pass.

    Raises:
        DataError: the images cannot be read, or their labels belong to no task.
    """
    device = str(merger.passes.device)
    size = merger.parents.input_size
    if targets is not None and not merger.parents.joint:
        wholes = merger.parents.wholes
        named = zip(merger.heads, wholes, strict=True)
        heads = [{**head, "kind": whole.kind, **mask_settings(whole)} for head, whole in named]
        recipe = merger.recipe
        chosen: dict[str, Any] = {"num_images": num_images, "batch_size": batch_size, "seed": recipe.seed}
        chosen |= {"skip_bad_images": recipe.skip_bad_images, "label_column": recipe.label_column, "channels": size[0]}
        held = (whole.processor for whole in wholes if whole.kind == DETECTION)
        chosen["processor"] = next((processor for processor in held if processor is not None), None)
        opened = open_all_targets(heads, targets, merger.transform, **chosen)
        return TaskMetrics(heads, opened, size, device=device)
    images = _opened(merger, data if targets is None else targets, num_images)
    if merger.parents.joint and all(part.labelled for part in images):
        return Classification(merger.heads, images, size, batch_size=batch_size, device=device)
    return Agreement(merger, Passes(images, batch_size, device))


class Agreement:
    """An evaluation without labels: merges are compared with their parents' outputs.

    For classification and segmentation, a task's score is the share of images or pixels with the same predicted class.
    For other outputs, it is the share of the parent's variance that the merge reproduces.

    Args:
        merger: the models.
        passes: passes over the images.
    """

    shared = True

    def __init__(self, merger: Merger, passes: Passes) -> None:
        self.parents = merger.parents
        self.tasks = merger.tasks
        self.passes = passes

    def result(self, name: str, merged: Merged) -> Result:
        """Measure one merge."""
        found = distance(merged, self.parents.wholes, self.passes)
        kinds = [whole.kind for whole in self.parents.wholes]
        problems = [whole.problem for whole in self.parents.wholes]
        scores = {
            task: value.agreement if kind in CLASSES and problem != "regression" else 1 - value.error
            for (task, value), kind, problem in zip(found.items(), kinds, problems, strict=True)
        }
        cost = cost_of(merged, self.parents.input_size)
        away = sum(value.error for value in found.values()) / len(found)
        return Result(name, cost.flops, cost.parameters, scores, mean(scores), distance=away)

    def results(self, merged: Merged, parents: Sequence[Source]) -> list[Result]:
        """Measure a merge beside its parents and their ensemble."""
        return [self.result("merged", merged), *self.of_parents(parents)]

    def of_parents(self, parents: Sequence[Source]) -> list[Result]:
        """Rows of the parents and their ensemble: their costs, with perfect agreement."""
        costs = self.parents.costs
        found = [self._same(f"parent:{task}", {task: 1.0}, cost) for task, cost in zip(self.tasks, costs, strict=True)]
        together = ensemble_cost(costs, [whole.model for whole in self.parents.wholes])
        return [*found, self._same("ensemble", dict.fromkeys(self.tasks, 1.0), together)]

    def fingerprint(self) -> Any:
        """Fingerprints of the images."""
        return [part.fingerprint() for part in self.passes.images]

    def _same(self, name: str, tasks: Mapping[str, float], cost: Any) -> Result:
        """A row with perfect agreement."""
        return Result(name, cost.flops, cost.parameters, dict(tasks), 1.0, distance=0.0)


def _opened(merger: Merger, data: Any, num_images: int | Sequence[int] | None) -> list[Images]:
    """The images for the evaluation; by default, those for the statistics."""
    if data is None:
        return list(merger.passes.images)
    return merger.open_images(data, splits=TEST, num_images=num_images)

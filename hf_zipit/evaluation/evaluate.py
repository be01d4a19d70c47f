"""Evaluation as one function call, for merges of classifiers and for merges of models with different outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.data.images import open_all
from hf_zipit.data.rows import TEST
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.classification import Classification
from hf_zipit.evaluation.dense import TaskMetrics, open_all_targets
from hf_zipit.evaluation.latency import with_latency
from hf_zipit.evaluation.protocols import ClassEmbeddings
from hf_zipit.evaluation.results import Evaluation, Result
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.sources.load import load_source
from hf_zipit.sources.preprocessing import preprocessing_of, processor_of
from hf_zipit.sources.source import Source


def evaluate(
    merged: Merged,
    data: Any,
    *,
    parents: Sequence[str | Path | nn.Module | Source] = (),
    num_images: int | Sequence[int] | None = None,
    skip_bad_images: int = 0,
    label_column: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
    class_ids: Sequence[Sequence[int]] | None = None,
    class_embeddings: ClassEmbeddings | None = None,
    metrics: Mapping[str, Sequence[str]] | None = None,
    latency: bool = False,
) -> list[Result]:
    """Evaluate a merged model and, if parents are given, the parents and their ensemble.

    A merge of classifiers is measured by accuracy, per task and among the classes of all tasks. In a merge of models
    with outputs of different kinds, each task is measured by its own metrics.

    Args:
        merged: the merged model.
        data: labelled images: one data set for all tasks, or a list with one for each. Labels are matched to each
            task's classes by name, or by number if the data set or the model has no names. Images of other classes
            are left out. For tasks with other outputs, see `open_targets`.
        parents: the source models, in task order; a parent that is itself a merge covers all of its tasks.
        num_images: images per data set, selected by the seed: one number for all, or one each.
        skip_bad_images: how many images per data set may be unreadable; they are left out and named.
        label_column: the column of the labels; by default, the one with the task's classes.
        batch_size: images per forward pass.
        seed: selects the images.
        device: where to run; by default, a GPU if one is available.
        class_ids: classifiers only. For each task, the data set's label for each of its classes. Needed when neither
            names nor numbers match, as for models trained on different classes of one data set.
        class_embeddings: classifiers only. The outputs are compared with these instead of being used as logits.
        metrics: tasks with outputs of different kinds only. The names of each task's metrics (see `METRICS`); by
            default, those for its kind.
        latency: whether to measure how long a forward pass takes, for one image and for a batch.

    Raises:
        DataError: the data has no labels or targets, or none that belong to a task.
        OptionError: there is not one parent for each task, a metric is unknown, or an argument is for classifiers only.

    >>> rows = evaluate(merged, ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    size, transform = preprocessing_of(merged)
    heads = merged.config.heads or []
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it must be at least 1")
    chosen: dict[str, Any] = {"num_images": num_images, "seed": seed}
    chosen |= {"skip_bad_images": skip_bad_images, "label_column": label_column}
    if joint(merged):
        if metrics is not None:
            raise OptionError("metrics are for tasks with outputs of different kinds: classifiers have accuracy")
        options: dict[str, Any] = {"class_ids": class_ids, "class_embeddings": class_embeddings}
        options |= {"batch_size": batch_size, "device": device}
        evaluation: Evaluation = open_classification(heads, data, size, transform, chosen, **options)
    else:
        if class_ids is not None or class_embeddings is not None:
            raise OptionError("class_ids and class_embeddings are for merges of classifiers only; leave them out")
        chosen |= {"batch_size": batch_size, "channels": size[0], "processor": processor_of(merged)}
        targets = open_all_targets(heads, data, transform, **chosen)
        evaluation = TaskMetrics(heads, targets, size, metrics=metrics, device=device)
    opened = [load_source(parent) for parent in parents]
    rows = evaluation.results(merged, opened)
    return with_latency(rows, merged, opened, size, device) if latency else rows


def open_classification(
    heads: Sequence[Mapping[str, Any]],
    data: Any,
    size: tuple[int, int, int],
    transform: Any,
    images: Mapping[str, Any],
    **options: Any,
) -> Classification:
    """Open labelled images for classifiers.

    Args:
        heads: for each task, its name (`task`), its classes (`id2label`) and, where it is special, its `problem`.
        data: labelled images, as for `evaluate`.
        size: (channels, height, width) of an input image.
        transform: PIL image -> pixels.
        images: options of `open_all`, such as `num_images` and `skip_bad_images`.
        options: those of `Classification`.

    Raises:
        DataError: the data has no labels, or none that belong to a task.
    """
    opened = open_all(data, len(heads), transform, splits=TEST, channels=size[0], **images)
    return Classification(heads, opened, size, **options)


def evaluate_tasks(merged: Merged, data: Any, **options: Any) -> list[Result]:
    """An alias of `evaluate`, for merges of models with different outputs."""
    return evaluate(merged, data, **options)


def joint(merged: Merged) -> bool:
    """Whether a merge predicts among the classes of all tasks."""
    return not isinstance(merged, ZipItModel)

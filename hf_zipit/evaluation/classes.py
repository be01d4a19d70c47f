"""Which images of a data set count for a task, and what their labels are among the classes of the task."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_zipit.data.dataset import Images
from hf_zipit.data.labels import Labels
from hf_zipit.errors import DataError
from hf_zipit.text import some

ANOTHER_COLUMN = "name another column with label_column (--label-column)"
_log = logging.getLogger("hf_zipit")


@dataclass(frozen=True)
class Target:
    """The labelled images of one task.

    Attributes:
        part: the position of their data set.
        index: the positions of the images in the data set, `(images,)`.
        values: what is true of each image. `single-label` and `binary`: its class, `(images,)`; `multi-label`: 1 or 0
            for each class, NaN where it is unknown, `(images, classes)`; `regression`: quantities `(images, outputs)`.
        problem: what the outputs of the task mean, see `sources.source.PROBLEMS`.
    """

    part: int
    index: Tensor
    values: Tensor
    problem: str


def find_target(
    images: Images, head: Mapping[str, Any], part: int = 0, classes: Mapping[int, int] | None = None
) -> Target:
    """The images of a data set that count for a task; what is left out is logged.

    Labels are matched to classes by name. If the data set or the model has no names, they are class numbers.

    Args:
        images: the data set.
        head: name (`task`), classes (`id2label`) and, if it is not `single-label`, `problem` of the task.
        part: the position of the data set.
        classes: the class of each label of the data set, if the user has stated it.

    Raises:
        DataError: the data set has no labels, none that belong to the task, or names that could mean several classes.
    """
    names = [str(head["id2label"][i]) for i in sorted(head["id2label"])]
    column = _column(images, names, head["task"], classes is None)
    _check_plain(column, images.name)
    problem = str(head.get("problem", "single-label"))
    if column.several and problem == "single-label":
        _log.warning(
            "%s: the images have several labels in '%s': task '%s' is measured as multi-label (another column: "
            "--label-column)",
            *(images.name, column.column, head["task"]),
        )
        problem = "multi-label"
    what = f"{images.name}, column '{column.column}', task '{head['task']}'"
    found: Mapping[int, float | list[float]]
    if problem == "regression":
        found = _quantities(column, len(names), what)
    elif problem == "multi-label":
        found = _many(column, names, what)
    else:
        column = replace(column, values=[_only(value, what) for value in column.values])
        known = classes or (_of_two(column, names, what) if problem == "binary" else known_classes(column, names, what))
        found = {i: float(known[value]) for i, value in enumerate(column.values) if value in known}
    if not found:
        raise DataError(f"{what}: no image has a label that belongs to the task; {ANOTHER_COLUMN}")
    values = torch.tensor(list(found.values()))
    return Target(part, torch.tensor(list(found)), values if values.ndim > 1 else values.long(), problem)


def _only(value: Any, what: str) -> Any:
    """The label itself, or the only one in a list.

    Raises:
        DataError: there are several.
    """
    if isinstance(value, list) and len(value) != 1:
        raise DataError(f"{what}: an image has the labels {value!r:.80}; one is needed")
    return value[0] if isinstance(value, list) else value


def _check_plain(column: Labels, name: str) -> None:
    """Refuse labels that are neither numbers, texts nor flat lists of them."""
    for i, value in enumerate(column.values):
        listed = value if isinstance(value, list) else [value]
        if not all(one is None or isinstance(one, int | float | str) for one in listed):
            raise DataError(f"{name}: the label of image {i} in '{column.column}' is {value!r:.80}; {ANOTHER_COLUMN}")


def _column(images: Images, names: Sequence[str], task: str, by_name: bool) -> Labels:
    """The column of labels; of several, the only one that names classes of the task.

    Raises:
        DataError: there is none, or several could be meant.
    """
    found = [column for column in images.labels if column.count()]
    if len(found) > 1 and by_name:
        found = [column for column in found if set(names).intersection(column.classes or ())] or found
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{column.column} ({some(column.classes or ['numbers'])})" for column in found)
        raise DataError(f"{images.name} has several columns of labels for task '{task}': {listed}; {ANOTHER_COLUMN}")
    raise DataError(f"{images.name} has no label column with labels in it: accuracy needs labels; {ANOTHER_COLUMN}")


def known_classes(column: Labels, names: Sequence[str], what: str) -> dict[Any, int]:
    """Maps labels of the data set to the classes of a task.

    Raises:
        DataError: they have no class in common, or a name is given to several classes.
    """
    known = column.classes
    if known is None or all(name == f"LABEL_{i}" for i, name in enumerate(names)):
        if known is not None and column.names is None:
            raise DataError(f"{what}: the labels are texts ({some(known)}), and the model has no class names")
        nameless = "the data set" if known is None else "the model"
        _log.warning("%s: %s has no class names; the labels are taken as class numbers", what, nameless)
        return {i: i for i in range(len(names))}
    labels = range(len(known)) if column.names is not None else known
    if list(known) == list(names):
        return {label: i for i, label in enumerate(labels)}
    shared = set(names).intersection(known)
    for name in sorted(shared):
        if max(list(names).count(name), list(known).count(name)) > 1:
            raise DataError(f"{what}: '{name}' is the name of several classes; give them different names")
    if not shared:
        raise DataError(
            f"{what}: the data set has none of the classes of the task: its classes are {some(known)}, the task's are "
            f"{some(names)}"
        )
    missing = [name for name in names if name not in shared]
    if missing:
        _log.warning(
            "%s: %d of %d classes are not in the data set (%s); only the others are measured",
            *(what, len(missing), len(names), some(missing)),
        )
    return {label: list(names).index(name) for label, name in zip(labels, known, strict=True) if name in shared}


def _of_two(column: Labels, names: Sequence[str], what: str) -> dict[Any, int]:
    """Maps labels of the data set to 0 and 1, for a model with one logit.

    Raises:
        DataError: the data set has more than two classes.
    """
    known = column.classes
    if known is None:
        return {0: 0, 1: 1}
    if len(known) != 2:
        raise DataError(
            f"{what}: the model has one logit, for one class against all others, and the data set has {len(known)} "
            f"classes ({some(known)}); {ANOTHER_COLUMN}"
        )
    positive = known.index(names[0]) if names[0] in known else 1
    if names[0] not in known:
        _log.warning("%s: '%s' is no class of the data; a positive logit is taken as '%s'", what, names[0], known[1])
    labels = range(2) if column.names is not None else known
    return {label: int(i == positive) for i, label in enumerate(labels)}


def _many(column: Labels, names: Sequence[str], what: str) -> dict[int, list[float]]:
    """For each labelled image 1 or 0 for each class; NaN where it is unknown.

    The labels are lists: of zeros and ones for all classes, or of those classes that are there, by name or number. In
    zeros and ones, -1 is unknown.

    Raises:
        DataError: a label has another form.
    """
    values = {i: v if isinstance(v, list) else [v] for i, v in enumerate(column.values) if v is not None}
    if all(len(value) == len(names) and set(value) <= {0, 1, -1, None} for value in values.values()):
        used = {one for value in values.values() for one in value}
        if 0 not in used and -1 in used:
            raise DataError(f"{what}: the labels are 1 and -1; give 0 to classes that are absent (-1 means unknown)")
        return {i: [1.0 if v == 1 else 0.0 if v == 0 else float("nan") for v in value] for i, value in values.items()}
    odd = next((v for v in values.values() if any(isinstance(one, float) for one in v) or len(set(v)) < len(v)), None)
    if odd is not None:
        raise DataError(
            f"{what}: the labels {odd!r:.80} are neither zeros and ones for {len(names)} classes, nor different classes"
        )
    known = known_classes(column, names, what)
    found = {}
    for i, value in values.items():
        present = {known[one] for one in value if one in known}
        if value and not present and column.classes is None:
            raise DataError(
                f"{what}: the labels {value} of image {i} are neither zeros and ones for {len(names)} classes, nor "
                "numbers of these classes"
            )
        found[i] = [float(k in present) for k in range(len(names))]
    return found


def _quantities(column: Labels, outputs: int, what: str) -> dict[int, list[float]]:
    """For each labelled image its quantities, one per output.

    Raises:
        DataError: a label is no number, or has another number of quantities.
    """
    found = {}
    for i, value in enumerate(column.values):
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        if len(listed) != outputs or not all(isinstance(one, int | float) for one in listed):
            raise DataError(f"{what}: the label of image {i} is {value!r}; {outputs} numbers are needed")
        found[i] = [float(one) for one in listed]
    return found

"""The columns of a data set that may hold its labels, and their values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_zipit.errors import OptionError

USUAL = ("label", "labels")


@dataclass(frozen=True)
class Labels:
    """One column of labels.

    Attributes:
        column: its name.
        values: for each image an integer, a text, a floating point number or a list of them; `None` if it has none.
        names: the class names of integer labels, in order, if the data set states them.
    """

    column: str
    values: Sequence[Any]
    names: list[str] | None = None

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return any(isinstance(value, list) for value in self.values)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes: stated, or else all texts that occur as labels, sorted; `None` for numbers."""
        if self.names is not None:
            return self.names
        flat = [one for value in self.values for one in (value if isinstance(value, list) else [value])]
        texts = {one for one in flat if isinstance(one, str)}
        return sorted(texts) if texts else None

    def count(self) -> int:
        """The number of images with a label."""
        return sum(value is not None for value in self.values)


def label_columns(rows: Any, label_column: str | None, name: str) -> tuple[Labels, ...]:
    """The columns that may hold labels: the named one, or else those of class labels, or those called so.

    Args:
        rows: a `datasets.Dataset`.
        label_column: the column that the user named.
        name: of the data set, for the message.

    Raises:
        OptionError: there is no such column.
    """
    import datasets

    features = rows.features
    if label_column is not None:
        if isinstance(features.get(label_column), datasets.Image | None):
            raise OptionError(f"{name} has no column '{label_column}' of labels; its columns: {', '.join(features)}")
        found = [label_column]
    else:
        found = [key for key, feature in features.items() if isinstance(_inner(feature), datasets.ClassLabel)]
        found = found or [key for key in USUAL if not isinstance(features.get(key), datasets.Image | None)]
    return tuple(_column(rows, key) for key in found)


def _column(rows: Any, key: str) -> Labels:
    names = getattr(_inner(rows.features[key]), "names", None)
    return Labels(key, [plain_label(value) for value in rows[key]], names)


def plain_label(value: Any) -> Any:
    """A label as a plain value; `None` if the image is not labelled: an empty cell or text, or no finite number.

    >>> [plain_label(value) for value in (3, "cat", "", True, 0.5, float("nan"), [1, 0])]
    [3, 'cat', None, 1, 0.5, None, [1, 0]]
    """
    if isinstance(value, list | tuple):
        return [plain_label(one) for one in value]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value == "" else value


def _inner(feature: Any) -> Any:
    """The feature itself, or that of the items of a list."""
    return getattr(feature, "feature", feature)

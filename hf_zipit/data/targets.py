"""Images with what a task should answer: classes, masks, depth, other images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hf_zipit.data.rows import TEST, rows_of
from hf_zipit.errors import DataError, OptionError

Batches = Iterable[tuple[Tensor, Tensor]]  # pixels (B, 3, H, W) and targets (B, ...)


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, rows: Any, columns: tuple[str, str], kind: str, transform: Callable[[Any], Tensor]) -> None:
        self.rows, self.columns, self.kind, self.transform = rows, columns, kind, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, target = (self.rows[index][column] for column in self.columns)
        pixels = self.transform(image.convert("RGB"))
        if self.kind == "image-classification":
            return pixels, torch.tensor(int(target))
        if self.kind == "image-to-image":
            return pixels, self.transform(target.convert("RGB"))
        values = torch.from_numpy(np.array(target))
        values = values if values.ndim == 2 else values[..., 0]
        sized = nn.functional.interpolate(values[None, None].float(), size=pixels.shape[1:], mode="nearest")[0, 0]
        return pixels, sized.long() if self.kind == "image-segmentation" else sized


def open_targets(
    data: Any,
    kind: str,
    transform: Callable[[Any], Tensor] | None,
    *,
    num_images: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Batches:
    """Batches of images with the targets of one task.

    Args:
        data: a Hub id, a path (with or without `:split`) or a `datasets.Dataset` with a column `image` and, for
            classes, one of labels, else one more image column (masks hold class ids, 255 is left out; depth is taken
            as it is); or an iterable of `(pixels, targets)` batches, taken as they are.
        kind: the kind of the task, as pipelines name it.
        transform: PIL image -> pixels.
        num_images: use this many, chosen by the seed; `None` uses all. Batches are used as they come.

    Raises:
        DataError: it cannot be read, or has no such column.
    """
    if not (isinstance(data, str | Path) or type(data).__module__.startswith("datasets.")):
        pairs = list(data)
        if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise DataError(f"the {kind} task needs batches of (pixels, targets)")
        return [(pixels, targets) for pixels, targets in pairs]
    rows, name = rows_of(data, TEST)
    if transform is None:
        raise DataError(f"{name}: the models say nothing about their preprocessing; give batches of pixels instead")
    if num_images is not None:
        rows = rows.shuffle(seed=seed).select(range(min(num_images, len(rows))))
    return DataLoader(_Pairs(rows, _columns(rows, kind, name), kind, transform), batch_size=batch_size)


def _columns(rows: Any, kind: str, name: str) -> tuple[str, str]:
    import datasets

    images = [k for k, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    image = "image" if "image" in images else next(iter(images), "")
    if kind == "image-classification":
        found = [k for k, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)] or [
            k for k in ("label", "labels") if k in rows.features
        ]
    else:
        found = [k for k in images if k != image]
    if not image or len(found) != 1:
        shown = ", ".join(f"{k} ({type(f).__name__})" for k, f in rows.features.items())
        raise DataError(f"{name}: the {kind} task needs an image column and one column of targets; it has {shown}")
    return image, found[0]


def one_each(data: Any, count: int) -> Sequence[Any]:
    """The data of every task: one data set for all, or a list with one for each.

    Raises:
        OptionError: a list with another number of data sets.
    """
    listed = isinstance(data, list | tuple) and not (data and isinstance(data[0], tuple))
    sets = list(data) if listed else [data]
    if len(sets) not in (1, count):
        raise OptionError(f"{len(sets)} data sets for {count} tasks: give one for all, or one for each")
    return sets * count if len(sets) == 1 else sets

"""Images with the targets of a task: classes, masks, depth maps or other images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hf_zipit.data.hashing import tensor_digest
from hf_zipit.data.rows import TEST, rows_of
from hf_zipit.errors import DataError, OptionError

Batches = Iterable[tuple[Tensor, Tensor]]  # pixels (B, 3, H, W) and targets (B, ...)


@dataclass(frozen=True)
class Targets:
    """Batches of images with the targets of one task.

    Attributes:
        batches: pixels `(B, 3, H, W)` and targets `(B, ...)`.
        fingerprint: identifies the images and their targets by content.
    """

    batches: Batches
    fingerprint: Callable[[], str]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pixels `(3, H, W)` and target of every row."""

    def __init__(self, rows: Any, columns: tuple[str, str], kind: str, transform: Callable[[Any], Tensor]) -> None:
        self.rows = rows
        self.columns = columns
        self.kind = kind
        self.transform = transform

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
) -> Targets:
    """Batches of images with the targets of one task.

    Args:
        data: a Hub id or a path, with or without `:split`, or a `datasets.Dataset`. It needs a column `image` and a
            column of targets: labels for classes, otherwise images. Masks hold class ids, and 255 is ignored; depth
            is used as it is. Or an iterable of `(pixels, targets)` batches, which are used as they are.
        kind: the task, by its name in transformers pipelines.
        transform: makes pixels `(3, H, W)` from a PIL image.
        num_images: use this many images, chosen by the seed; `None` uses all. Batches are all used.
        batch_size: images per batch.
        seed: of the choice of images.

    Raises:
        DataError: the data cannot be read, or a column is missing.
    """
    if not (isinstance(data, str | Path) or type(data).__module__.startswith("datasets.")):
        pairs = list(data)
        if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise DataError(f"the data for {kind} must be batches of (pixels, targets)")
        batches = [(pixels, targets) for pixels, targets in pairs]
        tensors = [tensor for pair in batches for tensor in pair]
        return Targets(batches, lambda: tensor_digest(enumerate(tensors)))
    if num_images is not None and num_images < 1:
        raise OptionError(f"num_images is {num_images}: it must be at least 1")
    rows, name = rows_of(data, TEST)
    if transform is None:
        raise DataError(
            f"{name}: the preprocessing of the models is unknown; give batches of preprocessed pixels instead"
        )
    if num_images is not None:
        rows = rows.shuffle(seed=seed).select(range(min(num_images, len(rows))))
    columns = _columns(rows, kind, name)
    loader = DataLoader(_Pairs(rows, columns, kind, transform), batch_size=batch_size)
    return Targets(loader, lambda: f"{rows._fingerprint} {columns} {kind}")


def _columns(rows: Any, kind: str, name: str) -> tuple[str, str]:
    """The image column and the target column."""
    import datasets

    images = [k for k, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    image = "image" if "image" in images else next(iter(images), "")
    if kind == "image-classification":
        found = [k for k, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
        found = found or [k for k in ("label", "labels") if k in rows.features]
    else:
        found = [k for k in images if k != image]
    if not image or len(found) != 1:
        shown = ", ".join(f"{k} ({type(f).__name__})" for k, f in rows.features.items())
        raise DataError(f"{name}: {kind} needs an image column and one column of targets; its columns: {shown}")
    return image, found[0]


def one_each(data: Any, count: int) -> Sequence[Any]:
    """The data set of every task, from one for all tasks or a list with one for each.

    Raises:
        OptionError: the list has another number of data sets.
    """
    listed = isinstance(data, list | tuple) and not (data and isinstance(data[0], tuple))
    sets = list(data) if listed else [data]
    if len(sets) not in (1, count):
        raise OptionError(f"{len(sets)} data sets for {count} tasks: give one for all, or one for each")
    return sets * count if len(sets) == 1 else sets

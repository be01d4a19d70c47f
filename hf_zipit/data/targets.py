"""Images with targets that are images: masks, depth maps or other pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_zipit.data.alignment import cut, window_of
from hf_zipit.data.draw import Sample
from hf_zipit.data.hashing import tensor_digest
from hf_zipit.data.rows import TEST, rows_of
from hf_zipit.data.stored import USUAL, StoredImages, Transform, check_transform, stored_rows
from hf_zipit.errors import DataError, OptionError

IGNORED = 255  # label of pixels that are left out
Batches = Iterable[tuple[Tensor, Tensor]]  # pixels (B, channels, H, W) and targets (B, ...)


@dataclass(frozen=True)
class Targets:
    """Batches of images with the targets of one task.

    Attributes:
        batches: pixels `(B, channels, H, W)` and targets `(B, ...)`.
        fingerprint: identifies the images and their targets by content.
    """

    batches: Batches
    fingerprint: Callable[[], str]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Pixels `(channels, H, W)` and target of every row."""

    def __init__(
        self, images: StoredImages, targets: StoredImages, kind: str, transform: Transform, reduce_labels: bool
    ) -> None:
        self.images = images
        self.targets = targets
        self.transform = transform
        self.reduce_labels = reduce_labels
        self.kind = kind
        self.windows: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return len(self.images.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, size = self.images.sized(index)
        if self.kind == "image-to-image":
            return pixels, self.targets[index]
        if size not in self.windows:
            self.windows[size] = window_of(self.transform, size, self.images.channels)
        values = cut(self.targets.values(index), self.windows[size], pixels.shape[1:])
        if self.kind != "image-segmentation":
            return pixels, values.float()
        ids = values.long()
        return pixels, torch.where((ids == 0) | (ids == IGNORED), IGNORED, ids - 1) if self.reduce_labels else ids


def open_targets(
    data: Any,
    kind: str,
    transform: Transform | None,
    *,
    channels: int = 3,
    num_images: int | None = None,
    batch_size: int = 64,
    seed: int = 0,
    skip_bad_images: int = 0,
    label_column: str | None = None,
    reduce_labels: bool = False,
) -> Targets:
    """Batches of images with targets that are images: masks, depth maps, or pictures.

    Args:
        data: a Hub id or a path, with or without `:split`, or a `datasets.Dataset`. It needs a column of images, and
            one of targets. Masks hold class ids, and 255 is ignored; depth is used as it is. Or an iterable of
            `(pixels, targets)` batches, which are used as they are.
        kind: the task, by its name in transformers pipelines.
        transform: makes pixels `(channels, H, W)` from a PIL image.
        channels: of the images that the models read.
        num_images: use this many images, chosen by the seed; `None` uses all. Batches are all used.
        batch_size: images per forward pass.
        seed: of the choice of images.
        skip_bad_images: how many rows whose image cannot be decoded are left out.
        label_column: the column of targets, where there are several.
        reduce_labels: masks hold 0 for no class, and k + 1 for class k of the model.

    Raises:
        DataError: the data cannot be read, or a column is missing.
        OptionError: there are fewer images than `num_images`.
    """
    if not from_datasets(data):
        return given_targets(data, kind)
    sample = Sample(num_images, seed=seed)
    rows, name = rows_of(data, TEST)
    transform = check_transform(transform, channels, name)
    image, target = _columns(rows, kind, name, label_column)
    chosen, _ = sample.rows(len(rows), name)
    images = StoredImages(stored_rows(rows, image), image, chosen, name, transform, channels)
    if skip_bad_images:
        images.skip_bad(skip_bad_images)
    targets = StoredImages(stored_rows(rows, target), target, images.chosen, name, transform, channels)
    loader = DataLoader(_Pairs(images, targets, kind, transform, reduce_labels), batch_size=batch_size)
    return Targets(loader, lambda: f"{images.fingerprint()} {targets.fingerprint()} {kind}")


def from_datasets(data: Any) -> bool:
    """Whether data is a Hub id, a path or an object of `datasets`, rather than batches."""
    return isinstance(data, str | Path) or type(data).__module__.startswith("datasets.")


def given_targets(data: Any, kind: str) -> Targets:
    """Batches of pixels and targets, used as they are.

    Raises:
        DataError: they are not pairs.
    """
    pairs = list(data)
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise DataError(f"the data for {kind} must be batches of (pixels, targets)")
    batches = [(pixels, targets) for pixels, targets in pairs]
    tensors = [tensor for pair in batches for tensor in pair]
    return Targets(batches, lambda: tensor_digest(enumerate(tensors)))


def _columns(rows: Any, kind: str, name: str, wanted: str | None) -> tuple[str, str]:
    """The image column and the target column."""
    import datasets

    columns = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    others = [key for key in columns if key != wanted]
    image = USUAL if USUAL in columns else others[0] if wanted in columns and len(others) == 1 else ""
    found = [key for key in columns if key != image and wanted in (None, key)]
    if not image or len(found) != 1:
        shown = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in rows.features.items())
        raise DataError(
            f"{name}: {kind} needs an image column and one column of targets; its columns: {shown}; call the "
            "images 'image', or name the targets with label_column (--label-column)"
        )
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

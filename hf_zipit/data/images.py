"""Images to merge on: from Hub ids, folders, parquet files, `datasets.Dataset`s, or batches of pixels."""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from hf_zipit.data.hashing import tensor_digest
from hf_zipit.data.rows import TRAIN, pinned, rows_of
from hf_zipit.errors import DataError, OptionError

NO_DATA = "no data: merging needs images, without labels; give them with --data"


class Images(Dataset[Tensor]):
    """Preprocessed images of one data set: `images[i]` is a `(3, H, W)` tensor.

    Attributes:
        get: makes image i.
        labels: the class id of every image, or `None` where it has none.
        names: the class names in the order of their ids, if known.
        name: what the data set is called in reports.
        fingerprint: a function that returns a hash of the chosen images.
        ref: the Hub id or path that opens the data set again, if it has one.
    """

    def __init__(
        self,
        get: Callable[[int], Tensor],
        labels: Sequence[int | None],
        names: list[str] | None,
        name: str,
        fingerprint: Callable[[], str],
        ref: str | None = None,
    ) -> None:
        self.get = get
        self.labels = labels
        self.names = names
        self.name = name
        self.fingerprint = fingerprint
        self.ref = ref

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Tensor:
        return self.get(index)


def open_images(
    data: Any,
    transform: Callable[[Any], Tensor] | None,
    *,
    splits: Sequence[str] = TRAIN,
    num_images: int | None = None,
    seed: int = 0,
    token: str | None = None,
) -> Images:
    """Open one data set.

    Args:
        data: a Hub id (`user/name`, `user/name@revision`) or a path (image folder, parquet file or folder of them),
            either followed by `:split`; a `datasets.Dataset`; or an iterable of pixel batches `(B, 3, H, W)`, of
            `(pixels, labels)` pairs or of `{"pixel_values", "labels"}` dicts.
        transform: makes pixels `(3, H, W)` from a PIL image. Batches of pixels need none.
        splits: the splits to prefer if none is named.
        num_images: use this many images, chosen by the seed, or the first ones of pixel batches; `None` uses all.
        seed: of that choice.
        token: an access token for the Hub.

    Raises:
        DataError: the data cannot be read, has no image column, or is empty.
        OptionError: there are fewer images than `num_images`, or no such split, or several splits and none is named.

    >>> images = open_images("user/pets:train", source.transform, num_images=100)  # doctest: +SKIP
    """
    if isinstance(data, str | Path) or type(data).__module__.startswith("datasets."):
        rows, name = rows_of(data, splits, token)
    elif isinstance(data, Iterable):
        return _pixel_batches([data] if isinstance(data, Tensor) and data.ndim == 4 else data, num_images)
    else:
        raise DataError(f"data of type {type(data).__name__}: give a Hub id, a path, a Dataset or pixel batches")
    column, label_column = _columns(rows, name)
    chosen = _subset(len(rows), num_images, seed, name)
    mark = hashlib.sha256(f"{rows._fingerprint} {column} {chosen}".encode()).hexdigest()
    ref = pinned(str(data), rows) if isinstance(data, str | Path) else None
    rows = rows.select(chosen)
    names = getattr(rows.features[label_column], "names", None) if label_column else None
    labels = list(rows[label_column]) if label_column else [None] * len(rows)
    if transform is None:
        raise DataError(
            f"{name}: the preprocessing of the models is unknown; give batches of preprocessed pixels instead"
        )
    convert = transform

    def get(index: int) -> Tensor:
        try:
            return convert(rows[index][column].convert("RGB"))
        except OSError as error:
            raise DataError(f"{name}: image {index} cannot be read: {error}") from error

    return Images(get, labels, names, name, lambda: mark, ref)


def open_all(
    data: Any,
    count: int,
    transform: Callable[[Any], Tensor] | None,
    *,
    num_images: int | Sequence[int] | None = None,
    **options: Any,
) -> list[Images]:
    """Open the data of several models: one data set for all of them, or one for each.

    Args:
        data: a data set as for `open_images`, or a list with one for each model.
        count: the number of models.
        transform: makes pixels `(3, H, W)` from a PIL image.
        num_images: one number for all data sets, or a list with one for each.
        options: the other options of `open_images`.

    Raises:
        OptionError: there is no data, or the number of data sets or of `num_images` does not fit.
        DataError: as for `open_images`, or the data sets yield images of different shapes.
    """
    if data is None:
        raise OptionError(NO_DATA)
    if not isinstance(data, list | tuple) or (len(data) and _is_batch(data[0], alone=len(data) != count)):
        data = [data]
    if len(data) not in (1, count):
        raise OptionError(f"{len(data)} data sets for {count} models: give one for all, or one for each")
    numbers = list(num_images) if isinstance(num_images, Sequence) else [num_images] * len(data)
    if len(numbers) != len(data):
        raise OptionError(f"{len(numbers)} numbers of images for {len(data)} data sets: give one, or one for each")
    opened = [open_images(d, transform, num_images=n, **options) for d, n in zip(data, numbers, strict=True)]
    shapes = {tuple(images[0].shape): images.name for images in opened}
    if len(shapes) > 1:
        found = ", ".join(f"{list(shape)} ({name})" for shape, name in shapes.items())
        raise DataError(f"the data sets yield images of different shapes: {found}")
    return opened


def _is_batch(item: Any, alone: bool) -> bool:
    """Whether an item of a list is a batch. With `alone`, a list of one tensor is a batch too, not a model's data."""
    if isinstance(item, list | tuple) and item and isinstance(item[0], Tensor):
        return not isinstance(item[1], Tensor) or item[1].ndim < 4 if len(item) > 1 else alone
    return isinstance(item, Tensor | dict)


def _subset(length: int, num_images: int | None, seed: int, name: str) -> list[int]:
    """The numbers of the chosen images, in order."""
    if not length:
        raise DataError(f"{name} holds no images")
    if num_images is None:
        return list(range(length))
    if num_images < 1:
        raise OptionError(f"num_images is {num_images}: it must be at least 1")
    if num_images > length:
        raise OptionError(f"{name} holds {length} images, {num_images} were asked for; lower --num-images")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:num_images].tolist())


def _columns(rows: Any, name: str) -> tuple[str, str | None]:
    """The image column, and the label column if there is exactly one candidate."""
    import datasets

    images = [k for k, f in rows.features.items() if isinstance(f, datasets.Image)]
    if len(images) != 1:
        found = ", ".join(f"{k} ({type(f).__name__})" for k, f in rows.features.items()) or "none"
        raise DataError(f"{name} has {len(images)} image columns and needs exactly one; its columns: {found}")
    labels = [k for k, f in rows.features.items() if isinstance(f, datasets.ClassLabel)]
    if not labels:
        labels = [k for k in ("label", "labels") if k in rows.features]
    return images[0], labels[0] if len(labels) == 1 else None


def _pixel_batches(data: Iterable[Any], num_images: int | None) -> Images:
    """Keep the pixels of an iterable of batches, which is read once and only as far as needed."""
    if num_images is not None and num_images < 1:
        raise OptionError(f"num_images is {num_images}: it must be at least 1")
    pixels: list[Tensor] = []
    labels: list[int | None] = []
    for batch, target in _unpacked(data):
        if batch.ndim != 4:
            raise DataError(f"a pixel batch has shape {tuple(batch.shape)}; (B, 3, H, W) is needed")
        if not batch.is_floating_point():
            raise DataError(f"a pixel batch is {batch.dtype}: give preprocessed pixels, as floating point numbers")
        pixels += list(batch.unbind())
        labels += [None] * len(batch) if target is None else [int(t) if t.ndim == 0 else None for t in target]
        if num_images is not None and len(pixels) >= num_images:
            break
    if not pixels:
        raise DataError("the given batches hold no images")
    if num_images is not None and len(pixels) < num_images:
        raise OptionError(f"the given batches hold {len(pixels)} images, {num_images} were asked for")
    pixels = pixels[:num_images]
    labels = labels[:num_images]
    return Images(pixels.__getitem__, labels, None, "the given batches", lambda: tensor_digest(enumerate(pixels)))


def _unpacked(data: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Pixels and labels of every batch; the labels are `None` where there are none."""
    for batch in itertools.chain(data):
        if isinstance(batch, Tensor):
            yield batch, None
        elif isinstance(batch, dict) and "pixel_values" in batch:
            yield batch["pixel_values"], batch.get("labels")
        elif isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
            yield batch[0], batch[1] if len(batch) > 1 else None
        else:
            raise DataError(f"a batch of type {type(batch).__name__} is not a (B, 3, H, W) tensor of pixels")

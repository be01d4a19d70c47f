"""Open images to merge on: from Hub ids, folders, parquet files, `datasets.Dataset`s, or batches of pixels."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_zipit.data.dataset import Images
from hf_zipit.data.draw import Sample
from hf_zipit.data.labels import label_columns
from hf_zipit.data.pixels import pixel_batches
from hf_zipit.data.rows import TRAIN, pinned, rows_of
from hf_zipit.data.stored import (
    PIXELS,
    StoredImages,
    Transform,
    check_transform,
    image_column,
    stored_rows,
)
from hf_zipit.errors import DataError, OptionError

NO_DATA = "no data: this needs images, without labels; give them as data (--data)"


def open_images(
    data: Any,
    transform: Transform | None,
    *,
    channels: int = 3,
    splits: Sequence[str] = TRAIN,
    num_images: int | None = None,
    most: int | None = None,
    held_out: bool = False,
    seed: int = 0,
    token: str | None = None,
    label_column: str | None = None,
    skip_bad_images: int = 0,
) -> Images:
    """Open one data set.

    Args:
        data: a Hub id (`user/name`, `user/name@revision`) or a path (image folder, parquet file or folder of them),
            either followed by `:split`; a `datasets.Dataset`; or an iterable of pixel batches `(B, channels, H, W)`, of
            `(pixels, labels)` pairs or of `{"pixel_values", "labels"}` dicts. A data set without images may hold
            preprocessed pixels `(channels, H, W)` in a column `pixel_values`.
        transform: makes pixels `(channels, H, W)` from a PIL image. Pixels need none.
        channels: of the images that the models read; images are converted to grey or RGB for 1 or 3.
        splits: the splits to prefer if none is named.
        num_images: use this many images, spread over the data set at random by the seed; of an iterable that is neither
            a list nor a tensor, the first ones. `None` uses all.
        most: with `num_images` `None`, use at most so many.
        held_out: hold out further images, as `Images.held`; where few are left, they are taken from those to be used.
        seed: of the draw.
        token: an access token for the Hub.
        label_column: the column that holds the labels; by default, columns of class labels, or `label` or `labels`.
        skip_bad_images: how many images that cannot be decoded are left out; if there are more, they are an error. A
            number above 0 decodes every image when the data set is opened.

    Raises:
        DataError: the data cannot be read, has no image column, or is empty; or too many images cannot be decoded.
        OptionError: there are fewer images than `num_images`, or no such split, or several splits and none is named.

    >>> images = open_images("user/pets:train", source.transform, num_images=100)  # doctest: +SKIP
    """
    sample = Sample(num_images, most, held_out, seed)
    if skip_bad_images < 0:
        raise OptionError(f"skip_bad_images is {skip_bad_images}: it must be at least 0")
    if isinstance(data, str | Path) or type(data).__module__.startswith("datasets."):
        rows, name = rows_of(data, splits, token)
    elif isinstance(data, Iterable):
        return pixel_batches([data] if isinstance(data, Tensor) and data.ndim == 4 else data, sample)
    else:
        raise DataError(f"data of type {type(data).__name__}: give a Hub id, a path, a Dataset or pixel batches")
    column = image_column(rows, name)
    if column != PIXELS:
        check_transform(transform, channels, name)

    def opened(chosen: Sequence[int], skip: int) -> Images:
        stored = StoredImages(stored_rows(rows, column), column, chosen, name, transform, channels)
        if skip_bad_images and column != PIXELS:
            stored.skip_bad(skip)
        labels = label_columns(rows.with_format(None).select(stored.chosen), label_column, name)
        ref = pinned(str(data), rows) if isinstance(data, str | Path) else None
        return Images(stored.__getitem__, len(stored.chosen), name, stored.fingerprint, labels, ref, asked=len(chosen))

    chosen, held = sample.rows(len(rows), name)
    read = opened(chosen, skip_bad_images)
    skipped = len(chosen) - len(read)
    return replace(read, held=opened(held, skip_bad_images - skipped) if held else None)


def open_all(
    data: Any,
    count: int,
    transform: Transform | None,
    *,
    num_images: int | Sequence[int] | None = None,
    **options: Any,
) -> list[Images]:
    """Open the data of several models: one data set for all of them, or one for each.

    Args:
        data: a data set as for `open_images`, or a list with one for each model.
        count: the number of models.
        transform: makes pixels `(channels, H, W)` from a PIL image.
        num_images: one number for all data sets, or a list with one for each.
        options: the other options of `open_images`.

    Raises:
        OptionError: there is no data, the number of data sets or of `num_images` does not fit, or images are held out
            of a data set that is given twice with different numbers.
        DataError: as for `open_images`, or the data sets yield images of different shapes.
    """
    if data is None:
        raise OptionError(NO_DATA)
    if not isinstance(data, list | tuple) or (len(data) and _is_batch(data[0], alone=len(data) != count)):
        data = [data]
    if len(data) not in (1, count):
        models = "1 model" if count == 1 else f"{count} models"
        raise OptionError(f"{len(data)} data sets for {models}: give one for all, or one for each")
    numbers = list(num_images) if isinstance(num_images, Sequence) else [num_images] * len(data)
    if len(numbers) != len(data):
        raise OptionError(f"{len(numbers)} numbers of images for {len(data)} data sets: give one, or one for each")
    if options.get("held_out") and len(set(numbers)) > 1 and _repeated(data):
        raise OptionError(f"num_images is {numbers} for a data set that is given twice: give one number")
    opened = [open_images(d, transform, num_images=n, **options) for d, n in zip(data, numbers, strict=True)]
    shapes = {tuple(images[0].shape): images.name for images in opened}
    if len(shapes) > 1:
        found = ", ".join(f"{list(shape)} ({name})" for shape, name in shapes.items())
        raise DataError(f"the data sets yield images of different shapes: {found}")
    return opened


def _repeated(data: Sequence[Any]) -> bool:
    """Whether a data set is given more than once; some of its images could then be read and held out."""
    pairs = combinations(data, 2)
    return any(one is other or (isinstance(one, str | Path) and str(one) == str(other)) for one, other in pairs)


def _is_batch(item: Any, alone: bool) -> bool:
    """Whether an item of a list is a batch. With `alone`, a list of one tensor is a batch too, not a model's data."""
    if isinstance(item, list | tuple) and item and isinstance(item[0], Tensor):
        return not isinstance(item[1], Tensor) or item[1].ndim < 4 if len(item) > 1 else alone
    return isinstance(item, Tensor | dict)

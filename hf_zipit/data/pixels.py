"""Batches of preprocessed pixels as a data set."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_zipit.data.dataset import Images
from hf_zipit.data.draw import Sample
from hf_zipit.data.hashing import tensor_digest
from hf_zipit.data.labels import Labels, plain_label
from hf_zipit.errors import DataError

NAME = "the given batches"


def pixel_batches(data: Iterable[Any], sample: Sample) -> Images:
    """Keep the pixels of an iterable of batches, which is read once: a list to its end, others as far as needed.

    Raises:
        DataError: a batch has another form, or they hold no images.
        OptionError: there are fewer than were asked for.
    """
    limit = None if isinstance(data, list | tuple) else sample.limit
    pixels: list[Tensor] = []
    labels: list[Any] = []
    for batch, target in _unpacked(data):
        _check(batch, pixels[0] if pixels else None)
        given = [None] * len(batch) if target is None else _plain(target)
        if len(given) != len(batch):
            raise DataError(f"a batch of {len(batch)} images has {len(given)} labels: give one for each image")
        pixels += list(batch.unbind())
        labels += given
        if limit is not None and len(pixels) >= limit:
            break

    def chosen(numbers: Sequence[int]) -> Images:
        mine = [pixels[number] for number in numbers]
        column = Labels("labels", [labels[number] for number in numbers])
        mark = lambda: tensor_digest(enumerate(mine))  # noqa: E731
        return Images(mine.__getitem__, len(mine), NAME, mark, (column,) if column.count() else ())

    read, held = sample.rows(len(pixels) if limit is None else min(len(pixels), limit), NAME)
    return replace(chosen(read), held=chosen(held) if held else None)


def _check(batch: Tensor, first: Tensor | None) -> None:
    """Refuse what is no batch of preprocessed pixels, or has images of another shape than the first one."""
    if batch.ndim != 4:
        raise DataError(f"a pixel batch has shape {tuple(batch.shape)}; (B, channels, H, W) is needed")
    if not batch.is_floating_point():
        raise DataError(f"a pixel batch is {batch.dtype}: give preprocessed pixels, as floating point numbers")
    if not batch.isfinite().all():
        raise DataError("a pixel batch holds values that are NaN or infinite; check the preprocessing")
    if first is not None and batch.shape[1:] != first.shape:
        raise DataError(
            f"{NAME} hold images of the shapes {tuple(first.shape)} and {tuple(batch.shape[1:])}; one is needed"
        )


def _plain(target: Any) -> list[Any]:
    """The labels of a batch, one per image, as plain values."""
    values = target.tolist() if isinstance(target, Tensor) else list(target)
    return [plain_label(value) for value in values]


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
            raise DataError(f"a batch of type {type(batch).__name__} is not a (B, channels, H, W) tensor of pixels")

"""The images of a `datasets.Dataset`: read, decoded and preprocessed one by one, with errors that name the image."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_zipit.data.decode import content, decode, with_channels
from hf_zipit.errors import DataError
from hf_zipit.sources.source import MODES
from hf_zipit.text import first_line

Transform = Callable[[Any], Tensor]
Read = TypeVar("Read")
USUAL = "image"
PIXELS = "pixel_values"
SHOWN = 3  # unreadable images that a message names
_log = logging.getLogger("hf_zipit")


class StoredImages:
    """Images by their position among the chosen ones: `stored[i]` is a `(channels, H, W)` tensor.

    The rows are read as they are stored: a format or transform that was set on the data set does not matter.

    Args:
        rows: a `datasets.Dataset`.
        column: the column of images, or of preprocessed pixels.
        chosen: the numbers of the chosen rows.
        name: of the data set, for messages.
        transform: makes pixels from a PIL image.
        channels: of the models.
    """

    def __init__(
        self, rows: Any, column: str, chosen: Sequence[int], name: str, transform: Transform | None, channels: int
    ) -> None:
        self.rows = rows
        self.column = column
        self.chosen = list(chosen)
        self.name = name
        self.transform = transform
        self.channels = channels
        self.said: set[str] = set()
        self.shape: torch.Size | None = None

    def __getitem__(self, index: int) -> Tensor:
        """Image i; see `sized`."""
        return self.sized(index)[0]

    def sized(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """Image i, and the (height, width) that it had before it was preprocessed.

        Raises:
            DataError: it cannot be read, or its pixels have another shape than those of other images.
        """
        pixels, size = self._named(index, self._pixels)
        self.shape = self.shape or pixels.shape
        if pixels.shape != self.shape:
            raise DataError(
                f"{self.name}: {self.label(index)} gives pixels of the shape {tuple(pixels.shape)}, others "
                f"{tuple(self.shape)}; the preprocessing of the models must give all images one size"
            )
        return pixels, size

    def values(self, index: int) -> Tensor:
        """The stored values of image i, such as class ids or depths, `(H, W)`.

        Raises:
            DataError: it cannot be read, or its channels differ.
        """
        return self._named(index, self._values)

    def picture(self, index: int) -> Image.Image:
        """Image i in the channels of the models, without preprocessing; an error names the image."""
        return self._named(index, self.image)

    def _named(self, index: int, read: Callable[[int], Read]) -> Read:
        """What `read` makes of image i; an error names the image."""
        try:
            return read(index)
        except DataError as error:
            raise DataError(
                f"{self.name}: {self.label(index)} cannot be read: {error}; mend or remove it, or tolerate some with "
                "skip_bad_images"
            ) from error

    def _values(self, index: int) -> Tensor:
        values = torch.from_numpy(np.array(decode(content(self._cell(index)), self._say(index))))
        if values.ndim == 3 and not (values[..., :3] == values[..., :1]).all():
            raise DataError("it has colours; one value per pixel is needed, in one channel")
        return values if values.ndim == 2 else values[..., 0]

    def _pixels(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        if self.column == PIXELS:
            pixels = torch.as_tensor(np.asarray(self._cell(index), dtype=np.float32))
            return pixels, (pixels.shape[-2], pixels.shape[-1])
        image = self.image(index)
        assert self.transform is not None
        try:
            return self.transform(image), (image.height, image.width)
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            raise DataError(
                f"the preprocessing fails on its {image.width} x {image.height} pixels: {first_line(error)}"
            ) from error

    def image(self, index: int) -> Image.Image:
        """Image i in the channels of the models.

        Raises:
            DataError: it cannot be read.
        """
        say = self._say(index)
        return with_channels(decode(content(self._cell(index)), say), self.channels, say)

    def _say(self, index: int) -> Callable[[str], None]:
        """A function that logs what is unusual about image i, once for all such images."""

        def say(what: str) -> None:
            if what not in self.said:
                self.said.add(what)
                _log.warning("%s: %s: %s; this holds for all such images", self.name, self.label(index), what)

        return say

    def label(self, index: int) -> str:
        """What image i is called in messages: its number in the data set, and its file if it has one."""
        cell = self._cell(index)
        path = cell.get("path") if isinstance(cell, dict) else None
        return f"image {self.chosen[index]}" + (f" ({path})" if path else "")

    def fingerprint(self) -> str:
        """A hash of the content of all images."""
        out = hashlib.sha256(f"{self.column} {self.channels};".encode())
        for index in range(len(self.chosen)):
            stored = repr(self._cell(index)).encode() if self.column == PIXELS else content(self._cell(index))
            out.update(f"{len(stored)};".encode())
            out.update(stored)
        return out.hexdigest()

    def skip_bad(self, limit: int) -> None:
        """Leave out images that cannot be decoded, and say which.

        Raises:
            DataError: there are more than `limit`, or no others.
        """
        bad: dict[int, str] = {}
        for index, number in enumerate(self.chosen):
            try:
                self.image(index)
            except DataError as error:
                bad[number] = f"{self.label(index)}: {error}"
        if not bad:
            return
        shown = "; ".join(list(bad.values())[:SHOWN]) + (f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else "")
        count = f"{len(bad)} of {len(self.chosen)} images cannot be read"
        if len(bad) > limit or len(bad) == len(self.chosen):
            raise DataError(f"{self.name}: {count}, and skip_bad_images is {limit}: {shown}")
        _log.warning("%s: %s and are left out: %s", self.name, count, shown)
        self.chosen = [number for number in self.chosen if number not in bad]

    def _cell(self, index: int) -> Any:
        return self.rows[self.chosen[index]][self.column]


def check_transform(transform: Transform | None, channels: int, name: str) -> Transform:
    """The preprocessing of the models, if it can be used for images.

    Raises:
        DataError: it is unknown, or the models read a number of channels that no image has.
    """
    if transform is None:
        raise DataError(
            f"{name}: the preprocessing of the models is unknown; give batches of preprocessed pixels instead"
        )
    if channels not in MODES:
        raise DataError(
            f"{name}: the models read {channels} channels, which no image has; give preprocessed pixels, as batches or "
            f"in a column {PIXELS}"
        )
    return transform


def stored_rows(rows: Any, column: str) -> Any:
    """The rows without a format or transform, and with undecoded images in the given column."""
    import datasets

    rows = rows.with_format(None)
    return rows if column == PIXELS else rows.cast_column(column, datasets.Image(decode=False))


def image_column(rows: Any, name: str) -> str:
    """The column of images: the only one, or the one called `image`; without any, that of preprocessed pixels.

    Raises:
        DataError: there is none, or several and none is called `image`.
    """
    import datasets

    found = [key for key, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    if len(found) == 1 or USUAL in found:
        return USUAL if USUAL in found else str(found[0])
    if not found and PIXELS in rows.features:
        return PIXELS
    shown = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in rows.features.items()) or "none"
    raise DataError(f"{name} has {len(found)} image columns and needs exactly one; its columns: {shown}")

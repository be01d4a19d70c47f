"""Which part of an image its preprocessing keeps, so that masks and depth maps are cut and resized alike.

Preprocessing is a function from an image to pixels that tells nothing of itself. It is applied to images whose values
grow from one edge to the other, and where an output pixel comes from is then its value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hf_zipit.errors import DataError
from hf_zipit.sources.source import MODES

TOLERANCE = 0.1  # of the height or width, for rounding to eight bits and smooth resizing
EXACT = 0.005  # a part that begins and ends so close to the edges is the whole
CHANGED = (
    "the preprocessing pads, flips or distorts images, so that masks and depth maps cannot follow it; give batches of "
    "preprocessed pixels and targets"
)
Window = tuple[float, float]  # where the part begins, and its length, as shares of the height or width


def window_of(transform: Callable[[Any], Tensor], size: tuple[int, int], channels: int) -> tuple[Window, Window]:
    """The part of images of one size that preprocessing keeps: along the height, and along the width.

    Args:
        transform: PIL image -> pixels `(channels, H, W)`.
        size: (height, width) of the image.
        channels: of the models, a key of `MODES`.

    Raises:
        DataError: an output pixel does not come from one place: the image is padded, flipped or otherwise changed.

    >>> window_of(lambda image: torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, 0), (8, 6), 3)
    ((0.0, 1.0), (0.0, 1.0))
    """

    def first(values: np.ndarray) -> Tensor:
        image = Image.fromarray(np.broadcast_to(values, size).round().astype(np.uint8))
        return transform(image.convert(MODES[channels]))[0].double()

    black = first(np.zeros(size))
    span = first(np.full(size, 255.0)) - black
    if not span.any():
        return (0.0, 1.0), (0.0, 1.0)  # pixels that do not depend on the image come from anywhere
    if not span.all():
        raise DataError(CHANGED)
    height, width = size
    rows = ((first(_ramp(height)[:, None]) - black) / span).mean(1)
    columns = ((first(_ramp(width)[None]) - black) / span).mean(0)
    return _window(rows), _window(columns)


def cut(values: Tensor, windows: Sequence[Window], shape: Sequence[int]) -> Tensor:
    """The part of a map of values that preprocessing keeps, at the size of its output; the nearest value is taken.

    Args:
        values: `(h, w)`.
        windows: along the height and the width.
        shape: (height, width) of the result.
    """
    index = []
    for (start, length), size, out in zip(windows, values.shape, shape, strict=True):
        places = (start + length * (torch.arange(out, dtype=torch.float64) + 0.5) / out) * size
        index.append(places.floor().long().clamp(0, size - 1))
    return values[index[0]][:, index[1]]


def _ramp(size: int) -> np.ndarray:
    """Values that grow from 0 to 255 over pixels, `(size,)`."""
    return 255 * (np.arange(size) + 0.5) / size


def _window(places: Tensor) -> Window:
    """The window along one axis.

    Args:
        places: for each output pixel, the share of the axis at which it comes from.
    """
    count = len(places)
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inner = slice(count // 8, count - count // 8)  # smooth resizing bends the ends
    x, y = centres[inner], places[inner]
    spread = (x - x.mean()).square().sum()
    length = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 1.0
    start = float(y.mean() - length * x.mean())
    if length <= 0 or float((y - start - length * x).abs().max()) > TOLERANCE / 4 or start < -TOLERANCE:
        raise DataError(CHANGED)
    whole = abs(start) < EXACT and abs(length - 1) < 2 * EXACT
    return (0.0, 1.0) if whole else (start, length)

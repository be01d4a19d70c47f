"""The images that models read: their channels, and what their preprocessing makes of one image."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_zipit.errors import DataError, SourceError
from hf_zipit.sources.source import MODES
from hf_zipit.text import first_line

LARGEST_TRIED = 2**22  # pixels; larger inputs are not tried when a model is opened


def per_channel(values: Any, channels: int) -> tuple[float, ...] | None:
    """A value for each channel, from one for all or one for each; `None` if the number of values does not fit.

    >>> per_channel(0.5, 3), per_channel([0.5], 1), per_channel([0.4, 0.5, 0.6], 1)
    ((0.5, 0.5, 0.5), (0.5,), None)
    """
    given = tuple(values) if isinstance(values, list | tuple) else (values,)
    if len(given) == 1:
        given *= channels
    return given if len(given) == channels else None


def wrong_count(setting: str, values: Any, channels: int) -> str:
    """The message for a `mean` or `std` that does not fit the channels of a model."""
    given = list(values) if isinstance(values, list | tuple) else values
    which = "1 channel" if channels == 1 else f"{channels} channels"
    return f"{setting} is {given}, but the model reads {which}: state one value, or one for each channel"


def failing(reason: str) -> Callable[[Any], Tensor]:
    """A transform for models in memory whose preprocessing cannot be used: they can only be given pixels.

    Raises:
        DataError: when it is called.
    """

    def transform(image: Any) -> Tensor:
        raise DataError(reason)

    return transform


def check_transform(
    name: str, size: tuple[int, int, int] | None, transform: Callable[[Any], Tensor] | None, place: str
) -> None:
    """Try the preprocessing of a model on one image of noise.

    Args:
        name: of the model.
        size: its input size (channels, height, width), if it is known.
        transform: PIL image -> pixels, if it has one.
        place: the file and the field that state the preprocessing, for the message.

    Raises:
        SourceError: it fails, or does not give finite pixels of the input size.
    """
    if transform is None or size is None:
        return
    channels, height, width = size
    if channels not in MODES or height * width > LARGEST_TRIED:
        return
    try:
        pixels = torch.as_tensor(transform(noise(channels, height, width)))
    except DataError as error:
        raise SourceError(f"{place}: {error}") from None
    except Exception as error:  # whatever the library raises for its settings
        raise SourceError(f"{place} cannot prepare a {MODES[channels]} image: {first_line(error)}") from error
    if tuple(pixels.shape) != tuple(size):
        raise SourceError(
            f"{place} makes pixels of shape {list(pixels.shape)} of an image in mode {MODES[channels]}, but "
            f"{name} reads {list(size)}"
        )
    if not (pixels.is_floating_point() and pixels.isfinite().all()):
        raise SourceError(f"{place} makes pixels that are not finite numbers; look at its mean, std and rescale_factor")


def noise(channels: int, height: int, width: int) -> Image.Image:
    """An image of noise in the mode for a number of channels."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)
    bands = [Image.fromarray(band.numpy()) for band in values]
    return bands[0] if channels == 1 else Image.merge(MODES[channels], bands)

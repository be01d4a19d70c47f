"""Images as they are stored: their bytes, decoded, turned upright, and in the channels that a model reads."""

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hf_zipit.errors import DataError
from hf_zipit.sources.source import MODES
from hf_zipit.text import first_line

UPRIGHT = {  # EXIF orientation -> how to turn the image
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Say = Callable[[str], None]


def content(cell: Any) -> bytes:
    """The bytes of an image as `datasets` stores it: in the cell itself, or in the file that it names.

    Raises:
        DataError: the cell is empty, or the file cannot be read.
    """
    held = cell or {}
    if held.get("bytes") is not None:
        return bytes(held["bytes"])
    if held.get("path") is None:
        raise DataError("the row has no image")
    try:
        if "://" in held["path"]:
            import fsspec

            with fsspec.open(held["path"], "rb") as opened:
                return bytes(opened.read())
        return Path(held["path"]).read_bytes()
    except OSError as error:
        raise DataError(error.strerror or first_line(error)) from error


def decode(stored: bytes, say: Say) -> Image.Image:
    """Decode an image and turn it upright, as cameras mark it and as `datasets` does.

    Args:
        stored: the content of an image file; of an animated one, the first frame is used.
        say: called with what is not as one may expect.

    Raises:
        DataError: it is damaged, too large to be safe, or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, which are not used
            image: Image.Image = Image.open(BytesIO(stored))
            image.load()
            frames = getattr(image, "n_frames", 1)
            turn = UPRIGHT.get(_orientation(image))
            image = image if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        raise DataError("it is no image in a format that Pillow reads") from None
    except Exception as error:  # damaged files make Pillow raise errors of many types
        raise DataError(first_line(error)) from error
    if frames > 1:
        say(f"it has {frames} frames; the first is used")
    return image


def _orientation(image: Image.Image) -> int:
    """The orientation that the camera recorded; 1 if it cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata do not damage the pixels
        return 1


def with_channels(image: Image.Image, channels: int, say: Say) -> Image.Image:
    """The image with eight bits in as many channels as a model reads.

    For models of one or three channels, the image is converted, as timm and transformers do: colours to grey and grey
    to colours; transparency is dropped. For two or four, it must have them: (grey, alpha), or RGBA or CMYK.

    Args:
        image: in any mode of Pillow.
        channels: of the model, a key of `MODES`.
        say: called with what is not as one may expect.

    Raises:
        DataError: the image has other channels, or values without a known range.
    """
    image = _eight_bits(image, say)
    if channels in (1, 3):
        if _transparent(image):
            say("it is partly transparent; its transparency is dropped")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of transparent palettes
                return image.convert(MODES[channels])
        except ValueError as error:
            raise DataError(first_line(error)) from error
    if image.mode == "P" and "transparency" in image.info and channels == 4:
        image = image.convert("RGBA")
    if image.mode == MODES[channels] or (image.mode == "CMYK" and channels == 4):
        return image
    raise DataError(f"it has {len(image.getbands())} channels ({image.mode}), and the models read {channels}")


def _eight_bits(image: Image.Image, say: Say) -> Image.Image:
    """Scale 16-bit integers, and floats from 0 to 1, to eight bits; Pillow would cut them off at 255.

    Raises:
        DataError: the values have another range, which the file does not state.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    limit = 1.0 if image.mode == "F" else 65535.0
    if not 0 <= low <= high <= limit:
        kind = "floating point" if image.mode == "F" else "32-bit"
        raise DataError(f"it has {kind} values from {low:g} to {high:g}; only 0 to {limit:g} have a known meaning")
    say("its values are scaled to eight bits")
    return Image.fromarray(np.round(values * (255 / limit)).astype(np.uint8))


def _transparent(image: Image.Image) -> bool:
    """Whether some pixels are not opaque."""
    if "A" in image.getbands():
        return image.getchannel("A").getextrema() != (255, 255)
    return "transparency" in image.info

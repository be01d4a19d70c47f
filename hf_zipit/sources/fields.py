"""The fields of configs that decide how a model is built and how its images are prepared: their types and ranges.

A config comes from anybody. What a library would answer with a traceback, or with a wrong result, is one message here.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from hf_zipit.errors import SourceError
from hf_zipit.sources.source import MAX_IMAGE_SIDE

MAX_CLASSES = 10**6  # transformers writes a name for each
MAX_LAYERS = 10**4
_SHOWN = 60  # characters of a wrong value


class Field(NamedTuple):
    """What a field may hold, in words and as a test."""

    what: str
    accepts: Callable[[Any], bool]


def check_fields(values: Mapping[str, Any], rules: Mapping[str, Field], place: str) -> None:
    """Refuse values of the wrong type or outside of their range; a field may be absent or null.

    Args:
        values: a config.
        rules: the fields to check.
        place: the file, and the field that the values are in, for the message.

    Raises:
        SourceError: the message names the field, its value, and what it should be.
    """
    for key, (what, accepts) in rules.items():
        value = values.get(key)
        if value is not None and not accepts(value):
            raise SourceError(
                f"{place}: {key} is {_short(value)}, not {what}; correct it or use another copy of the file"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _whole(value: Any, low: int = 0, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether a value, or every entry of a list that is not empty, is accepted."""
    return all(map(accepts, value)) if isinstance(value, list | tuple) and value else accepts(value)


def _side(value: Any) -> bool:
    return _whole(value, 1, MAX_IMAGE_SIDE)


def _image(value: Any) -> bool:
    sized = isinstance(value, list | tuple) and len(value) == 3
    return sized and _whole(value[0], 1) and all(map(_side, value[1:]))


def _box(value: Any) -> bool:
    """Whether it is a side, two sides, or sides by name, as image processors state sizes."""
    return all(_side(v) for v in value.values() if v is not None) if isinstance(value, Mapping) else _some(value, _side)


def whole(low: int) -> Field:
    """A whole number, or a list of them."""
    return Field(f"a whole number of at least {low}, or a list of them", lambda v: _some(v, lambda n: _whole(n, low)))


def one_of(*names: str) -> Field:
    """One of some words."""
    return Field(f"one of {', '.join(names)}", lambda value: value in names)


MAPPING = Field("a mapping", lambda value: isinstance(value, Mapping))
FLAG = Field("true or false", lambda value: isinstance(value, bool))
NUMBER = Field("a finite number", _number)
NUMBERS = Field("a finite number, or a list of them", lambda value: _some(value, _number))
DIVISORS = Field(
    "a finite number other than 0, or a list of them", lambda value: _some(value, lambda n: _number(n) and n != 0)
)
COUNT = Field("a whole number of at least 0", _whole)
CLASSES = Field(f"a number of classes up to {MAX_CLASSES}", lambda value: _whole(value, 0, MAX_CLASSES))
LAYERS = Field(
    f"a number of layers up to {MAX_LAYERS}, or a list of them",
    lambda value: _some(value, lambda n: _whole(n, 0, MAX_LAYERS)),
)
WORD = Field("a word", lambda value: isinstance(value, str))
WORDS = Field("a word, or a list of them", lambda value: _some(value, lambda v: isinstance(v, str)))
IMAGE = Field(f"[channels, height, width] with sides of 1 to {MAX_IMAGE_SIDE}", _image)
BOX = Field(f"a side of 1 to {MAX_IMAGE_SIDE} pixels, two sides, or a mapping of sides", _box)
NAMES = Field("a list or a mapping of class names", lambda value: isinstance(value, list | tuple | Mapping))
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos", "")  # the last is timm's default

TIMM = {"num_classes": COUNT, "model_args": MAPPING, "pretrained_cfg": MAPPING, "label_names": NAMES}
TIMM_ARGS = {
    "in_chans": Field("a whole number of at least 1", lambda value: _whole(value, 1)),
    "img_size": BOX,
    **dict.fromkeys(("depth", "depths", "layers", "num_blocks"), LAYERS),
}
TIMM_IMAGES = {
    "input_size": IMAGE,
    "test_input_size": IMAGE,
    "min_input_size": IMAGE,
    "mean": NUMBERS,
    "std": DIVISORS,
    "crop_pct": Field("a number above 0, at most 10", lambda value: _number(value) and 0 < value <= 10),
    "crop_mode": one_of("center", "squash", "border"),
    "interpolation": one_of(*INTERPOLATIONS),
    "num_classes": COUNT,
    "label_names": NAMES,
    "label_offset": COUNT,
    "first_conv": WORDS,
    "classifier": WORDS,
}
TRANSFORMERS = {
    "model_type": WORD,
    "architectures": WORDS,
    "id2label": Field("a mapping of ids to class names", lambda value: isinstance(value, Mapping)),
    "num_labels": CLASSES,
    "problem_type": one_of("regression", "single_label_classification", "multi_label_classification"),
    "vision_config": MAPPING,
    "backbone_config": MAPPING,
    **dict.fromkeys(("hidden_size", "num_attention_heads", "num_heads", "num_channels", "embed_dim"), whole(1)),
    **dict.fromkeys(("hidden_sizes", "patch_size", "intermediate_size", "window_size"), whole(1)),
    **dict.fromkeys(("num_hidden_layers", "depths"), LAYERS),
    "image_size": BOX,
    **dict.fromkeys(("layer_norm_eps", "initializer_range"), NUMBER),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"), NUMBERS),
}
PROCESSOR = {
    "image_processor_type": WORD,
    "size": BOX,
    "crop_size": BOX,
    "image_mean": NUMBERS,
    "image_std": DIVISORS,
    "rescale_factor": NUMBER,
    "resample": Field("a whole number from 0 to 5", lambda value: _whole(value, 0, 5)),
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"), FLAG),
}

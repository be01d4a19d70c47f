"""Image processors of transformers: read, applied to an image, and what they say about the size of the images."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.fields import PROCESSOR, check_fields
from hf_zipit.sources.pixels import failing, noise, per_channel, wrong_count
from hf_zipit.sources.source import MODES
from hf_zipit.text import load_errors

PROCESSOR_FILE = "preprocessor_config.json"
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # by timm's names
_SIDE = 256  # of the square image that shows what a processor makes of images
_DEFAULT_SIDE = 224  # of classifiers whose config states no image size


def processor_in(folder: str | Path, *, trust_remote_code: bool = False, needed: bool = False) -> Any:
    """The image processor in a folder; `None` where there is none and it is not `needed`.

    Raises:
        SourceError: it is needed, and there is none, or its settings are wrong.
    """
    file = Path(folder, PROCESSOR_FILE)
    if not needed and not file.is_file():
        return None
    if file.is_file():
        check_fields(read_json(file), PROCESSOR, str(file))
    from transformers import AutoImageProcessor

    with load_errors(f"{folder}: transformers cannot load its image processor", Exception):  # libraries raise anything
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def processor_transform(processor: Any, channels: int = 3) -> Callable[[Any], Tensor] | None:
    """What an image processor does to one image: PIL image -> pixels `(channels, H, W)`.

    Those of detectors keep the proportions of an image, so that each has a size of its own. A merge reads all images in
    one size: the one that the processor gives to a square image.
    """
    if processor is None:
        return None
    options: dict[str, Any] = {}
    if finds_boxes(processor) and channels in MODES:
        square = processor(noise(channels, _SIDE, _SIDE), return_tensors="pt")["pixel_values"]
        options = {"do_pad": False}
        if processor.do_resize:
            options["size"] = {"height": square.shape[-2], "width": square.shape[-1]}
    return lambda image: processor(image, return_tensors="pt", **options)["pixel_values"][0]


def finds_boxes(processor: Any) -> bool:
    """Whether an image processor makes boxes of a detector's outputs."""
    return hasattr(processor, "post_process_object_detection")


def transform_of(processor: Any, channels: int, model: str) -> Callable[[Any], Tensor] | None:
    """As `processor_transform`, for a model that reads a number of channels; one that does not fit them fails."""
    settings = {} if processor is None else processor.to_dict()
    for key in ("image_mean", "image_std") if settings.get("do_normalize") else ():
        if per_channel(settings.get(key), channels) is None:
            return failing(f"{model}: {wrong_count(f'{key} of the image processor', settings[key], channels)}")
    return processor_transform(processor, channels)


def processor_facts(processor: Any) -> dict[str, Any]:
    """What an image processor states, as plain values; see `preprocessing.facts_of`."""
    settings: dict[str, Any] = json.loads(processor.to_json_string())
    normal, names = settings.get("do_normalize"), {number: name for name, number in RESAMPLE.items()}
    return {
        "mean": settings.get("image_mean") if normal else [0.0],
        "std": settings.get("image_std") if normal else [1.0],
        "interpolation": names.get(settings.get("resample", -1)) if settings.get("do_resize") else None,
        "scale": settings.get("rescale_factor") if settings.get("do_rescale") else 1.0,
        "settings": settings,
    }


def image_size(config: Mapping[str, Any], processor: Any) -> tuple[int, int, int] | None:
    """The input size (channels, height, width) of a model; `None` where neither config nor processor states it.

    The processor goes first: what it resizes images to, or what it makes of a square image where it crops them or
    resizes one side. Otherwise it is the size that the model was built for.
    """
    channels = channels_of(config)
    settings = {} if processor is None else processor.to_dict()
    stated = settings.get("size") or {}
    if "height" in stated and not settings.get("do_center_crop"):
        return channels, int(stated["height"]), int(stated["width"])
    transform = transform_of(processor, channels, "model")
    if transform is not None and channels in MODES and (settings.get("do_resize") or settings.get("do_center_crop")):
        height, width = transform(noise(channels, _SIDE, _SIDE)).shape[1:]
        return channels, int(height), int(width)
    model = config.get("vision_config") or config
    size = model.get("image_size") or (model.get("backbone_config") or {}).get("image_size")
    if not size:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return channels, int(height), int(width)


def channels_of(config: Mapping[str, Any]) -> int:
    """The number of channels of the images that a model reads; three where its config does not state it."""
    model = config.get("vision_config") or config
    return int(model.get("num_channels") or (model.get("backbone_config") or {}).get("num_channels") or 3)


def classifier_size(config: Mapping[str, Any], processor: Any) -> tuple[int, int, int]:
    """The input size (channels, height, width) of a classifier; 224 x 224 where nothing states it."""
    return image_size(config, processor) or (channels_of(config), _DEFAULT_SIDE, _DEFAULT_SIDE)


def dense_processor(size: Sequence[int], settings: Mapping[str, Any]) -> Any:
    """An image processor for pipelines of masks and depth, with the preprocessing of a timm model.

    Args:
        size: (channels, height, width) of the images.
        settings: timm's `pretrained_cfg`, with `mean` and `std`.
    """
    from transformers import DPTImageProcessor

    return DPTImageProcessor(
        size={"height": size[1], "width": size[2]},
        do_pad=False,
        keep_aspect_ratio=False,
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
        resample=RESAMPLE[settings.get("interpolation") or "bicubic"],
    )

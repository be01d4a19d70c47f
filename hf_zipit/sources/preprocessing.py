"""How a merged model prepares images, whatever its sources came from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.sources import from_timm
from hf_zipit.sources.processors import classifier_size, processor_facts, processor_in, transform_of


def preprocessing_of(
    merged: ZipItPreTrainedModel,
) -> tuple[tuple[int, int, int], Callable[[Any], Tensor] | None]:
    """The input size (channels, height, width) and the transform (PIL image -> pixels) of a merged model.

    The transform is `None` where none of the sources had one.
    """
    config: Any = merged.config
    stated = getattr(config, "input_size", None)  # only merges of models of several kinds state it
    settings = getattr(config, "preprocessing", None) or getattr(config, "pretrained_cfg", None)
    if settings:
        size, transform = from_timm.preprocessing(settings)
        return _three(stated or size), transform
    processor = processor_of(merged)
    size = _three(stated or classifier_size(config.backbone["config"], processor))
    return size, transform_of(processor, size[0], config.model_type)


def facts_of(merged: ZipItPreTrainedModel) -> dict[str, Any]:
    """What is known of a merged model's preprocessing, as plain values; empty where none of the sources had one.

    `mean` and `std` are for pixel values of 0 to 255 that were multiplied by `scale`. `interpolation` is `None` where
    images are not resized. `settings` holds everything that the library of the sources states, cropping included.
    """
    config: Any = merged.config
    stated = getattr(config, "preprocessing", None) or getattr(config, "pretrained_cfg", None)
    if stated:
        settings = from_timm.resolved(stated)
        return {key: settings[key] for key in ("mean", "std", "interpolation")} | {
            "scale": 1 / 255,
            "settings": settings,
        }
    processor = processor_of(merged)
    return {} if processor is None else processor_facts(processor)


def processor_of(merged: ZipItPreTrainedModel) -> Any:
    """The image processor of a merge of transformers models: its own, or the one in the folder it was loaded from."""
    backbone: dict[str, Any] = merged.config.backbone or {}
    if merged.image_processor is not None or backbone.get("library") == from_timm.NAME or not merged.name_or_path:
        return merged.image_processor
    place = merged.name_or_path
    return processor_in(place, needed=not Path(place).is_dir())


def _three(size: Any) -> tuple[int, int, int]:
    channels, height, width = size
    return channels, height, width

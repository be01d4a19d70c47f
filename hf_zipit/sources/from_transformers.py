"""Models of transformers: loaded, outlined, wrapped, and written as ordinary checkpoints; their image processors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import file_digest, no_larger_than, weight_files
from hf_zipit.sources.faults import load_errors
from hf_zipit.sources.source import NOWHERE, Source

NAME = "transformers"
CLASSIFICATION = "image-classification"
_KINDS = {  # by the ending of the class's name; other models give features
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForMaskedImageModeling": "image-to-image",
    "ForImageSuperResolution": "image-to-image",
}
_NOT_STRUCTURE = {"id2label", "label2id", "_name_or_path", "architectures", "transformers_version"}
_PROCESSOR_CLASS = {"_processor_class", "image_processor_type"}
_DEFAULT_SIDE = 224  # of classifiers whose config states no image size


def owns(config: Mapping[str, Any]) -> bool:
    """Whether transformers wrote this `config.json`."""
    return bool(config.get("model_type"))


def read_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load a folder written by transformers; see `Library`. A classifier needs its image processor in it."""
    from transformers import AutoConfig, AutoModelForImageClassification

    files = weight_files(folder, access.allow_pickle)
    trust = access.trust_remote_code
    kind = _kind(_class_name(config))
    with _loading(folder):
        # the Auto class also finds classifiers whose code comes with them
        cls = AutoModelForImageClassification if kind == CLASSIFICATION else _class(folder, config)
        with no_larger_than(files, folder / "config.json"):
            model, info = cls.from_pretrained(
                folder,
                output_loading_info=True,
                trust_remote_code=trust,
                use_safetensors=files[0].suffix == ".safetensors",
            )
        processor = processor_in(folder, trust_remote_code=trust, needed=kind == CLASSIFICATION)
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"{files[0]} does not fit its config.json: {', '.join(wrong[:3])}")
    source = _source(model.eval(), kind, name, processor, {**origin, "sha256": file_digest(files)}, folder)
    if not type(model).__module__.startswith("transformers_modules."):
        return source
    AutoConfig.register(model.config.model_type, type(model.config), exist_ok=True)  # so that this process can build it
    AutoModelForImageClassification.register(type(model.config), type(model), exist_ok=True)
    return replace(source, backbone={"library": NAME, "config": source.backbone["config"], "remote": True})


def outline_folder(folder: Path, config: dict[str, Any], device: str) -> Source:
    """Build the model of a folder with random weights; see `Library`."""
    import transformers

    kind = _kind(_class_name(config))
    cls = _class(folder, config)
    settings = {key: value for key, value in config.items() if key != "architectures"}
    with torch.device(device if kind == CLASSIFICATION else "cpu"):
        model = cls(transformers.AutoConfig.for_model(**settings))
    return _source(model.eval(), kind, None, processor_in(folder), dict(NOWHERE), folder)


def wrap_module(model: nn.Module, model_args: dict[str, Any] | None) -> Source | None:
    """A model of transformers in memory, without an image processor; `None` for any other module."""
    if not hasattr(getattr(model, "config", None), "model_type"):
        return None
    return _source(model, _kind(type(model).__name__), None, None, dict(NOWHERE))


def source_of_merge(
    model: nn.Module, name: str, labels: list[str], origin: dict[str, Any], folder: Path | None
) -> Source:
    """The backbone of a merge as a source.

    Args:
        model: the backbone with the merged weights.
        name: the name of the source.
        labels: the classes of all tasks, in the order of the logits.
        origin: where the merge came from.
        folder: where it was loaded from, if it was; its image processor lies in it.
    """
    processor = processor_in(folder, needed=True) if folder else None
    return replace(_source(model, CLASSIFICATION, name, processor, origin, folder), labels=labels)


def processor_in(folder: str | Path, *, trust_remote_code: bool = False, needed: bool = False) -> Any:
    """The image processor in a folder; `None` where there is none and it is not `needed`.

    Raises:
        OSError: it is needed, and there is none.
    """
    from transformers import AutoImageProcessor

    if not needed and not Path(folder, "preprocessor_config.json").is_file():
        return None
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)


def processor_transform(processor: Any) -> Callable[[Any], Tensor] | None:
    """What an image processor does to one image: PIL image -> pixels `(3, H, W)`."""
    if processor is None:
        return None
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def image_size(config: Mapping[str, Any], processor: Any) -> tuple[int, int, int] | None:
    """The input size (channels, height, width) of a model; `None` where neither config nor processor states it.

    The processor goes first: what it resizes images to, or what it makes of a square image where it crops them or
    resizes one side. Otherwise it is the size that the model was built for.
    """
    model = config.get("vision_config") or config
    channels = int(model.get("num_channels") or 3)
    settings = {} if processor is None else processor.to_dict()
    stated = settings.get("size") or {}
    if "height" in stated and not settings.get("do_center_crop"):
        return channels, int(stated["height"]), int(stated["width"])
    transform = processor_transform(processor)
    if transform is not None and (settings.get("do_resize") or settings.get("do_center_crop")):
        height, width = transform(Image.new("RGB", (256, 256))).shape[1:]
        return channels, int(height), int(width)
    size = model.get("image_size") or (model.get("backbone_config") or {}).get("image_size")
    if not size:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return channels, int(height), int(width)


def classifier_size(config: Mapping[str, Any], processor: Any) -> tuple[int, int, int]:
    """The input size (channels, height, width) of a classifier; 224 x 224 where nothing states it."""
    channels = int((config.get("vision_config") or config).get("num_channels") or 3)
    return image_size(config, processor) or (channels, _DEFAULT_SIDE, _DEFAULT_SIDE)


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
    )


def write_checkpoint(model: Any, folder: Path, labels: Mapping[int, str], processor: Any) -> None:
    """Write a model in transformers' format into an existing folder, with its class names and image processor."""
    model.config.id2label = dict(labels)
    model.config.label2id = {name: i for i, name in labels.items()}
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)


def hide_progress_bars() -> None:
    """Hide the bars for loading and writing weights, which takes seconds. This loads transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _class_name(config: Mapping[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _kind(class_name: str) -> str:
    """What a class of transformers does; distilled classifiers (`...WithTeacher`) are classifiers."""
    if "ForImageClassification" in class_name:
        return CLASSIFICATION
    found = (kind for ending, kind in _KINDS.items() if class_name.endswith(ending))
    return next(found, "image-feature-extraction")


def _class(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model class that a config names."""
    import transformers

    name = _class_name(config)
    cls = getattr(transformers, name, None) if name else None
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        what = f"transformers has no model class {name}" if name else "it does not name its class under architectures"
        raise SourceError(f"{folder}/config.json: transformers cannot load it: {what}")
    return cls


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Report what transformers raises while it loads a folder."""
    with load_errors(
        f"{folder}: transformers cannot load it", OSError, ValueError, KeyError, RuntimeError, ImportError
    ):
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            if isinstance(error, SourceError) or "trust_remote_code" not in str(error):
                raise
            raise SourceError(
                f"{folder} needs the code files that come with it; read them, then allow them with --trust-remote-code"
            ) from error


def _source(
    model: Any, kind: str, name: str | None, processor: Any, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    config = _structure(model, kind)
    settings = {} if processor is None else processor.to_dict()
    size = classifier_size(config, processor) if kind == CLASSIFICATION else image_size(config, processor)
    preprocessing: dict[str, Any] = {} if size is None else {"input_size": size}
    preprocessing |= {key: value for key, value in settings.items() if key not in _PROCESSOR_CLASS}
    labels = []
    if kind in (CLASSIFICATION, "image-segmentation"):
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return Source(
        name=name or model.config.model_type,
        model=model,
        backbone={"library": NAME, "architecture": type(model).__name__, "config": config},
        labels=labels,
        preprocessing=preprocessing,
        transform=processor_transform(processor),
        origin=origin,
        settings={},
        folder=folder,
        processor=processor,
        kind=kind,
    )


def _structure(model: Any, kind: str) -> dict[str, Any]:
    """What is recorded of a config to rebuild the model: all but its class names and where it came from.

    Merges that exist record a `dtype` for classifiers only, and a number of classes for other models only: the
    classifier of a merge has the classes of all tasks, so its number is set when it is built.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_STRUCTURE}
    if kind == CLASSIFICATION:
        config.pop("num_labels", None)
        return config
    config.pop("dtype", None)
    if kind == "image-segmentation":
        config["num_labels"] = model.config.num_labels
    return config

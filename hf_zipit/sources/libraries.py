"""Models of timm and transformers as `Source`: the one module that knows model libraries."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.models import cifar_resnet as _cifar_resnet  # noqa: F401  (registers cifar_resnet20 with timm)
from hf_zipit.models import cifar_vgg as _cifar_vgg  # noqa: F401  (registers cifar_vgg11)
from hf_zipit.models.modeling_zipit import READING
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import digest, no_larger_than, read_weights, weight_files
from hf_zipit.sources.source import Source

_NOT_ARCHITECTURE = {"id2label", "label2id", "num_labels", "_name_or_path", "architectures", "transformers_version"}


NOWHERE: dict[str, Any] = {"id": None, "folder": None, "revision": None, "sha256": None}  # the origin of a module


def untrained(architecture: str) -> Source:
    """A timm architecture by name with random weights, to inspect it or to check a spec with it.

    Raises:
        SourceError: timm has no such architecture.
    """
    if not timm.is_model(architecture):
        raise SourceError(f"'{architecture}' is neither a folder, a Hub id (user/name), nor a timm architecture")
    return timm_module(timm.create_model(architecture, pretrained=False), None)


def from_module(model: nn.Module, model_args: dict[str, Any] | None, processor: Any = None) -> Source:
    """A loaded module of either library; one of transformers with its image processor where it is known.

    Raises:
        SourceError: it was not made by `timm.create_model` or a transformers class, so it cannot be rebuilt later.
    """
    config: Any = getattr(model, "pretrained_cfg", None)
    if config and config.get("architecture"):
        return timm_module(model, model_args)
    if hasattr(getattr(model, "config", None), "model_type"):
        return _transformers_source(model, None, processor, dict(NOWHERE))
    raise SourceError(
        f"a {type(model).__name__} that was not made by timm.create_model cannot be rebuilt later: "
        "save it as a Hub-format folder and pass that, or say what it does with hf_zipit.module_source"
    )


def timm_module(model: Any, model_args: dict[str, Any] | None) -> Source:
    """A module made by `timm.create_model`, with the keyword arguments that timm does not keep."""
    config = model.pretrained_cfg
    known = model_args if model_args is not None else getattr(model, "model_args", {})
    backbone = {"library": "timm", "architecture": config["architecture"], "model_args": known}
    return _timm_source(config["architecture"], model, backbone, config.get("label_names"), dict(NOWHERE))


def timm_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """A folder in timm's Hub format."""
    architecture, file = config["architecture"], folder / "config.json"
    args = {k: v for k, v in _mapping(config, "model_args", file).items() if k != "num_classes"}
    settings = {**_mapping(config, "pretrained_cfg", file), "architecture": architecture}
    classes = config.get("num_classes", settings.get("num_classes", 1000))
    if not timm.is_model(architecture):
        raise SourceError(f"{file}: timm cannot build {architecture}: it has no such model")
    if not READING.isdisjoint(args):
        raise SourceError(f"{file}: model_args may not hold {', '.join(READING & set(args))}")
    files = weight_files(folder, access.allow_pickle)
    state = read_weights(files)
    build = partial(timm.create_model, architecture, num_classes=classes, pretrained_cfg=settings, **args)
    try:
        with no_larger_than(files, file):
            with torch.device("meta"), suppress(RuntimeError):  # takes no memory, where the architecture can do it
                build()
            model = build()
    except SourceError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise SourceError(f"{folder}: timm cannot build {architecture}: {error}") from None
    fill(model, state, files[0])
    backbone = {"library": "timm", "architecture": architecture, "model_args": args}
    labels = config.get("label_names", settings.get("label_names"))
    return _timm_source(name, model, backbone, labels, {**origin, "sha256": digest(files)}, folder)


def _mapping(config: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise SourceError(f"{file}: {key} is {value!r}, not a mapping")
    return value


def _timm_source(
    name: str,
    model: nn.Module,
    backbone: dict[str, Any],
    labels: Any,
    origin: dict[str, Any],
    folder: Path | None = None,
) -> Source:
    known: Any = model  # timm's attributes are not typed
    described = dict(known.pretrained_cfg)
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if fixed is not None:  # a model made for another size than its family's still says the family's
        described["input_size"] = (3, *fixed)
    settings = timm.data.resolve_data_config(pretrained_cfg=described)
    preprocessing = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    names = list(labels.values()) if isinstance(labels, dict) else list(labels or [])
    classes = getattr(known, "num_classes", 0)  # feature extractors of timm have none
    names = names or [f"LABEL_{i}" for i in range(classes)]
    transform = timm.data.create_transform(**preprocessing, is_training=False)
    kind = "image-classification" if classes else "image-feature-extraction"
    return Source(name, model, backbone, names, preprocessing, transform, origin, described, folder, kind=kind)


def merged_source(model: Any, name: str, config: Any, origin: dict[str, Any], folder: Path | None) -> Source:
    """The backbone of a merge, with what its config says of labels and preprocessing; `folder` has its processor."""
    labels = [label for head in config.heads for _, label in sorted(head["id2label"].items())]
    if config.backbone["library"] == "timm":
        model.pretrained_cfg = dict(config.pretrained_cfg)
        return _timm_source(name, model, config.backbone, labels, origin, folder)
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder) if folder else None
    return replace(_transformers_source(model, name, processor, origin, folder), labels=labels)


def transformers_folder(
    folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access
) -> Source:
    """A folder in transformers' format, with an image classifier in it."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    files, trust = weight_files(folder, access.allow_pickle), access.trust_remote_code
    try:
        with no_larger_than(files, folder / "config.json"):
            model, info = AutoModelForImageClassification.from_pretrained(
                folder,
                output_loading_info=True,
                trust_remote_code=trust,
                use_safetensors=files[0].suffix == ".safetensors",
            )
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust)
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise SourceError(
                f"{folder} needs the code files that come with it: read them, and allow them with --trust-remote-code"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise SourceError(f"{folder}: transformers cannot load an image classifier: {first}") from error
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"{files[0]} does not fit its config.json: {', '.join(wrong[:3])}")
    source = _transformers_source(model, name, processor, {**origin, "sha256": digest(files)}, folder)
    if not type(model).__module__.startswith("transformers_modules."):
        return source
    AutoConfig.register(model.config.model_type, type(model.config), exist_ok=True)  # so that this process can build it
    AutoModelForImageClassification.register(type(model.config), type(model), exist_ok=True)
    return replace(source, backbone={"library": "transformers", "config": source.backbone["config"], "remote": True})


def _transformers_source(
    model: Any, name: str | None, processor: Any, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    config = model.config.to_dict()
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    config = {k: v for k, v in config.items() if k not in _NOT_ARCHITECTURE}
    backbone = {"library": "transformers", "architecture": type(model).__name__, "config": config}
    preprocessing: dict[str, Any] = {"input_size": _image_size(config, processor)}
    if processor is not None:
        noise = {"_processor_class", "image_processor_type"}
        preprocessing |= {k: v for k, v in processor.to_dict().items() if k not in noise}
    name = name or model.config.model_type
    model, transform = model.eval() if folder else model, processor_transform(processor)
    return Source(*(name, model, backbone, labels, preprocessing, transform, origin, {}, folder, processor))


def _image_size(config: dict[str, Any], processor: Any) -> tuple[int, int, int]:
    """(channels, height, width): what the image processor makes of an image, else what the model was built for."""
    config = config.get("vision_config", config)
    size, transform = config.get("image_size", 224), processor_transform(processor)
    if transform is not None:
        size = tuple(transform(Image.new("RGB", (256, 256))).shape[1:])
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(config.get("num_channels", 3)), int(height), int(width)


def processor_in(folder: Path) -> Any:
    """The image processor of transformers in a folder, if there is one."""
    from transformers import AutoImageProcessor

    known = (folder / "preprocessor_config.json").is_file()
    return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False) if known else None


def processor_transform(processor: Any) -> Callable[[Any], Tensor] | None:
    """PIL image -> pixels, by an image processor of transformers."""
    if processor is None:
        return None
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def timm_transform(settings: dict[str, Any]) -> Callable[[Any], Tensor]:
    """PIL image -> pixels, by the preprocessing settings of a timm model."""
    found: Callable[[Any], Tensor] = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=settings), is_training=False
    )
    return found


def preprocessing_of(merged: Any) -> tuple[tuple[int, int, int], Callable[[Any], Tensor] | None]:
    """The input size and the transform (PIL image -> pixels) of a merged model."""
    config = merged.config
    if config.backbone["library"] == "timm":
        settings = timm.data.resolve_data_config(pretrained_cfg=config.pretrained_cfg)
        return tuple(settings["input_size"]), timm.data.create_transform(**settings, is_training=False)
    processor = processor_of(merged)
    return _image_size(config.backbone["config"], processor), processor_transform(processor)


def processor_of(merged: Any) -> Any:
    """The image processor of a merged model of transformers: the one it has, or the one it was saved with."""
    if merged.image_processor is not None or merged.config.backbone["library"] == "timm" or not merged.name_or_path:
        return merged.image_processor
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(merged.name_or_path)


def fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Give a model its weights.

    Raises:
        SourceError: some are missing, unexpected, or of another shape.
    """
    own = model.state_dict()
    problems = [f"{k} is missing" for k in own if k not in state]
    problems += [f"{k} is unexpected" for k in state if k not in own]
    problems += [
        f"{k} has shape {list(state[k].shape)}, not {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(f"{path} does not fit its config.json: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)

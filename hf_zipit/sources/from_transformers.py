"""Models of transformers: loaded, outlined, wrapped, and written as ordinary checkpoints."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import file_digest, headers, no_larger_than, weight_files
from hf_zipit.sources.fields import TRANSFORMERS, check_fields
from hf_zipit.sources.names import class_names
from hf_zipit.sources.processors import channels_of, classifier_size, image_size, processor_in, transform_of
from hf_zipit.sources.source import DETECTION, NOWHERE, Source
from hf_zipit.sources.states import COMPILERS, check_loaded, left_prefix
from hf_zipit.text import load_errors

NAME = "transformers"
CLASSIFICATION = "image-classification"
NAMED = (CLASSIFICATION, "image-segmentation", DETECTION)  # kinds whose outputs are classes with names
_KINDS = {  # by the ending of the class's name; other models give features
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForObjectDetection": DETECTION,
    "ForMaskedImageModeling": "image-to-image",
    "ForImageSuperResolution": "image-to-image",
}
_NOT_STRUCTURE = {"id2label", "label2id", "_name_or_path", "architectures", "transformers_version"}
_PROCESSOR_CLASS = {"_processor_class", "image_processor_type"}
_PROBLEMS = {"multi_label_classification": "multi-label", "regression": "regression"}


def owns(config: Mapping[str, Any]) -> bool:
    """Whether transformers wrote this `config.json`."""
    return bool(config.get("model_type"))


def read_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load a folder written by transformers; see `Library`. A classifier needs its image processor in it."""
    from transformers import AutoConfig, AutoModelForImageClassification

    _check_config(config, folder)
    files = weight_files(folder, access.allow_pickle)
    trust = access.trust_remote_code
    kind = _kind(_class_name(config))
    prefix = left_prefix(headers(files), COMPILERS)
    with _loading(folder):
        # the Auto class also finds classifiers whose code comes with them
        cls = AutoModelForImageClassification if kind == CLASSIFICATION else _class(folder, config)
        with no_larger_than(files, folder / "config.json"):
            model, info = cls.from_pretrained(
                folder,
                output_loading_info=True,
                key_mapping={f"^{re.escape(prefix)}": ""} if prefix else None,
                trust_remote_code=trust,
                use_safetensors=files[0].suffix == ".safetensors",
            )
        processor = processor_in(folder, trust_remote_code=trust, needed=kind == CLASSIFICATION)
    check_loaded(model, info, files[0])
    source = _source(model.eval(), kind, name, processor, {**origin, "sha256": file_digest(files)}, folder)
    if not type(model).__module__.startswith("transformers_modules."):
        return source
    AutoConfig.register(model.config.model_type, type(model.config), exist_ok=True)  # so that this process can build it
    AutoModelForImageClassification.register(type(model.config), type(model), exist_ok=True)
    return replace(source, backbone={"library": NAME, "config": source.backbone["config"], "remote": True})


def outline_folder(folder: Path, config: dict[str, Any], device: str) -> Source:
    """Build the model of a folder with random weights; see `Library`."""
    import transformers

    _check_config(config, folder)
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
    processor = processor_in(folder) if folder else None
    return replace(_source(model, CLASSIFICATION, name, processor, origin, folder), labels=labels)


def as_source(model: Any, name: str, processor: Any, origin: dict[str, Any]) -> Source:
    """A classifier that was loaded elsewhere, with its image processor, as a source."""
    return _source(model, CLASSIFICATION, name, processor, origin)


def write_checkpoint(model: Any, folder: Path, labels: Mapping[int, str], processor: Any) -> None:
    """Write a model in transformers' format into an existing folder, with its class names and image processor."""
    model.config.id2label = dict(labels)
    model.config.label2id = {name: i for i, name in labels.items()}
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)


def hide_progress_bars() -> None:
    """Hide the bars for loading and writing weights, which takes seconds. This loads transformers.

    Bars of downloads and of merges stay: transformers hides those of the Hub's client as well, whose class they have.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not hidden:
        enable_progress_bars()


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config with values of wrong types, or with class names that are not numbered from 0."""
    file = folder / "config.json"
    check_fields(config, TRANSFORMERS, str(file))
    _check_reads_images(config, str(file))
    for key in ("vision_config", "backbone_config"):
        check_fields(config.get(key) or {}, TRANSFORMERS, f"{file}: {key}")
    names = config.get("id2label")
    if names:
        class_names(names, len(names), f"{file}: id2label")


def _check_reads_images(config: Mapping[str, Any], where: str) -> None:
    """Refuse a model that reads patches, with their masks and shapes, instead of images."""
    if str(config.get("model_type")).startswith("siglip2"):
        raise SourceError(
            f"{where}: {config['model_type']} is a NaFlex model, which reads patches of images of any shape; a merge "
            "reads images of one size. Use a SigLIP 2 checkpoint of a fixed resolution, such as "
            "google/siglip2-base-patch16-224, with SiglipForImageClassification"
        )


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
    with load_errors(f"{folder}: transformers cannot load it", Exception):  # libraries raise anything
        try:
            yield
        except Exception as error:
            if isinstance(error, SourceError) or "trust_remote_code" not in str(error):
                raise
            raise SourceError(
                f"{folder} needs the code files that come with it; read them, then allow them with "
                "trust_remote_code=True or --trust-remote-code"
            ) from error


def _source(
    model: Any, kind: str, name: str | None, processor: Any, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    config = _structure(model, kind)
    _check_reads_images(config, name or type(model).__name__)
    settings = {} if processor is None else processor.to_dict()
    size = classifier_size(config, processor) if kind == CLASSIFICATION else image_size(config, processor)
    preprocessing: dict[str, Any] = {} if size is None else {"input_size": size}
    preprocessing |= {key: value for key, value in settings.items() if key not in _PROCESSOR_CLASS}
    labels = []
    if kind in NAMED:
        place = f"{folder}/config.json: id2label" if folder else "id2label in the config of the model"
        labels = class_names(model.config.id2label, model.config.num_labels, place)
    return Source(
        name=name or model.config.model_type,
        model=model,
        backbone={"library": NAME, "architecture": type(model).__name__, "config": config},
        labels=labels,
        preprocessing=preprocessing,
        transform=transform_of(processor, channels_of(config), model.config.model_type),
        origin=origin,
        settings={},
        folder=folder,
        processor=processor,
        kind=kind,
        problem=_problem(model.config) if kind == CLASSIFICATION else "single-label",
    )


def _problem(config: Any) -> str:
    """What the logits of a classifier mean; of one logit the sigmoid is taken, as transformers' pipeline does."""
    stated = _PROBLEMS.get(str(config.problem_type), "single-label")
    return "binary" if config.num_labels == 1 and stated != "regression" else stated


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
    if kind in NAMED:
        config["num_labels"] = model.config.num_labels
    return config

"""Models of timm: loaded, outlined, wrapped, and written as ordinary timm checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import READING
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import file_digest, fill, no_larger_than, read_weights, weight_files
from hf_zipit.sources.faults import load_errors
from hf_zipit.sources.source import NOWHERE, Source

NAME = "timm"


def owns(config: Mapping[str, Any]) -> bool:
    """Whether timm wrote this `config.json`."""
    return isinstance(config.get("architecture"), str)


def read_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load a folder in timm's Hub format; see `Library`."""
    file = folder / "config.json"
    build = _Build.of(config, file)
    files = weight_files(folder, access.allow_pickle)
    state = read_weights(files)
    with (
        load_errors(f"{folder}: timm cannot build {build.architecture}", RuntimeError, TypeError, ValueError),
        no_larger_than(files, file),
    ):
        with torch.device("meta"), suppress(RuntimeError):  # takes no memory, but not every architecture allows it
            build()
        model = build()
    fill(model, state, files[0])
    return _source(name, model, build.backbone, build.labels, {**origin, "sha256": file_digest(files)}, folder)


def outline_folder(folder: Path, config: dict[str, Any], device: str) -> Source:
    """Build the model of a folder with random weights; see `Library`."""
    build = _Build.of(config, folder / "config.json")
    with torch.device(device):
        model = build()
    return _source(build.architecture, model.eval(), build.backbone, build.labels, dict(NOWHERE), folder)


def wrap_module(model: nn.Module, model_args: dict[str, Any] | None) -> Source | None:
    """A module made by `timm.create_model`; `None` for any other.

    Args:
        model: the module.
        model_args: the keyword arguments it was created with, which timm does not keep; by default the `model_args` of
            the module, if it has any.
    """
    config: Any = getattr(model, "pretrained_cfg", None)
    if not config or not config.get("architecture"):
        return None
    known = model_args if model_args is not None else getattr(model, "model_args", {})
    backbone = {"library": NAME, "architecture": config["architecture"], "model_args": known}
    return _source(config["architecture"], model, backbone, config.get("label_names"), dict(NOWHERE))


def untrained(architecture: str) -> Source:
    """A timm architecture with random weights, to inspect it or to check a spec with it.

    Raises:
        SourceError: timm has no such architecture.
    """
    if not timm.is_model(architecture):
        raise SourceError(f"'{architecture}' is not a folder, not a Hub id (user/name), and not a timm architecture")
    source = wrap_module(timm.create_model(architecture, pretrained=False), None)
    if source is None:
        raise SourceError(f"timm's {architecture} has no pretrained_cfg, so it cannot be rebuilt later")
    return source


def source_of_merge(
    model: Any, name: str, config: Any, labels: list[str], origin: dict[str, Any], folder: Path | None
) -> Source:
    """The backbone of a merge as a source.

    Args:
        model: the backbone with the merged weights.
        name: the name of the source.
        config: the merge's config.
        labels: the classes of all tasks, in the order of the logits.
        origin: where the merge came from.
        folder: where it was loaded from, if it was.
    """
    model.pretrained_cfg = dict(config.pretrained_cfg)
    return _source(name, model, config.backbone, labels, origin, folder)


def preprocessing(settings: dict[str, Any]) -> tuple[tuple[int, int, int], Callable[[Any], Tensor]]:
    """The input size (channels, height, width) and the transform (PIL image -> pixels) of a `pretrained_cfg`."""
    resolved = timm.data.resolve_data_config(pretrained_cfg=settings)
    return tuple(resolved["input_size"]), timm.data.create_transform(**resolved, is_training=False)


def knows(architecture: str) -> bool:
    """Whether timm itself defines an architecture; those that come with hf-zipit are only registered with it."""
    return bool(timm.model_entrypoint(architecture).__module__.startswith("timm."))


def write_checkpoint(
    model: Any, folder: Path, labels: Sequence[str], settings: Mapping[str, Any], model_args: Mapping[str, Any]
) -> None:
    """Write a model in timm's Hub format, so that transformers reads it as well.

    Args:
        model: a timm module.
        folder: an existing folder.
        labels: class names, in id order.
        settings: the `pretrained_cfg` that it is saved with.
        model_args: the keyword arguments it was created with, apart from the number of classes.
    """
    known = {key: value for key, value in settings.items() if key not in ("label_names", "num_classes")}
    model.pretrained_cfg = {**known, "num_classes": len(labels)}
    named = {"label_names": list(labels)}
    timm.models.save_for_hf(model, folder, model_config=named, model_args=dict(model_args), safe_serialization=True)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # transformers passes it a second time, and fails
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Build:
    """How a `config.json` of timm builds its model."""

    architecture: str
    model_args: dict[str, Any]
    settings: dict[str, Any]
    classes: Any
    labels: Any

    @classmethod
    def of(cls, config: dict[str, Any], file: Path) -> "_Build":
        """Read a config; it may name an architecture of timm, but no file and no repository."""
        architecture = config["architecture"]
        args = {key: value for key, value in _mapping(config, "model_args", file).items() if key != "num_classes"}
        settings = {**_mapping(config, "pretrained_cfg", file), "architecture": architecture}
        if not timm.is_model(architecture):
            raise SourceError(f"{file}: timm cannot build {architecture}: it has no such model")
        if not READING.isdisjoint(args):
            raise SourceError(f"{file}: model_args may not hold {', '.join(READING & set(args))}")
        classes = config.get("num_classes", settings.get("num_classes", 1000))
        return cls(architecture, args, settings, classes, config.get("label_names", settings.get("label_names")))

    def __call__(self) -> nn.Module:
        """The model with random weights."""
        model: nn.Module = timm.create_model(
            self.architecture, num_classes=self.classes, pretrained_cfg=self.settings, **self.model_args
        )
        return model

    @property
    def backbone(self) -> dict[str, Any]:
        """What is recorded to rebuild it."""
        return {"library": NAME, "architecture": self.architecture, "model_args": self.model_args}


def _mapping(config: dict[str, Any], key: str, file: Path) -> dict[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise SourceError(f"{file}: {key} is {value!r}, not a mapping")
    return value


def _source(
    name: str,
    model: nn.Module,
    backbone: dict[str, Any],
    labels: Any,
    origin: dict[str, Any],
    folder: Path | None = None,
) -> Source:
    """A timm module as a source; `labels` are class names as timm writes them: a list, a mapping, or `None`."""
    known: Any = model  # timm's attributes are not typed
    described = dict(known.pretrained_cfg)
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if fixed is not None:  # a model built for another image size still states the size of its family
        described["input_size"] = (3, *fixed)
    resolved = timm.data.resolve_data_config(pretrained_cfg=described)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in resolved.items()}
    classes = getattr(known, "num_classes", 0)  # feature extractors of timm have none
    names = list(labels.values()) if isinstance(labels, dict) else list(labels or [])
    return Source(
        name=name,
        model=model,
        backbone=backbone,
        labels=names or [f"LABEL_{i}" for i in range(classes)],
        preprocessing=settings,
        transform=timm.data.create_transform(**settings, is_training=False),
        origin=origin,
        settings=described,
        folder=folder,
        kind="image-classification" if classes else "image-feature-extraction",
    )

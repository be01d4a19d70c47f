"""Models of timm: loaded, outlined, wrapped, and written as ordinary timm checkpoints."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import READING
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import file_digest, no_larger_than, read_weights, weight_files
from hf_zipit.sources.fields import TIMM, TIMM_ARGS, TIMM_IMAGES, check_fields
from hf_zipit.sources.names import class_names
from hf_zipit.sources.pixels import failing, per_channel, wrong_count
from hf_zipit.sources.source import NOWHERE, Source
from hf_zipit.sources.states import fill, unwrapped
from hf_zipit.sources.timm_filters import build_and_filter
from hf_zipit.text import load_errors

NAME = "timm"


def owns(config: Mapping[str, Any]) -> bool:
    """Whether timm wrote this `config.json`."""
    return isinstance(config.get("architecture"), str)


def read_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load a folder in timm's Hub format; see `Library`."""
    file = folder / "config.json"
    build = _Build.of(config, file)
    files = weight_files(folder, access.allow_pickle)
    with (
        load_errors(f"{folder}: timm cannot build {build.architecture}", Exception),  # libraries raise anything
        no_larger_than(files, file),
    ):
        with torch.device("meta"), suppress(RuntimeError):  # takes no memory, but not every architecture allows it
            build()
        model, convert = build_and_filter(partial(build, pretrained=knows(build.architecture)))
        state, prefix = unwrapped(read_weights(files), model, files[0])
        state = convert(timm.models.clean_state_dict(state))  # single names may still have a prefix
        state = _without_background(state, model, build.settings)
    fill(model, state, files[0], prefix)
    return _source(name, model.eval(), build.backbone, build.labels, {**origin, "sha256": file_digest(files)}, folder)


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
    return replace(_source(name, model, config.backbone, None, origin, folder), labels=labels)


def preprocessing(settings: dict[str, Any]) -> tuple[tuple[int, int, int], Callable[[Any], Tensor]]:
    """The input size (channels, height, width) and the transform (PIL image -> pixels) of a `pretrained_cfg`."""
    resolved, transform = _preprocessing(settings)
    return resolved["input_size"], transform


def resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing that a `pretrained_cfg` states, as plain values: size, mean, std, cropping, ..."""
    values = _preprocessing(settings)[0]
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


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
        check_fields(config, TIMM, str(file))
        known = {field.name for field in fields(timm.models.PretrainedCfg)}
        stated = config.get("pretrained_cfg")
        if stated is None:  # the first configs of timm on the Hub had its fields beside the architecture
            stated = {key: value for key, value in config.items() if key in known}
            stated.setdefault("label_names", config.get("labels"))
        check_fields(stated, TIMM_IMAGES, f"{file}: pretrained_cfg")
        args = {key: value for key, value in (config.get("model_args") or {}).items() if key != "num_classes"}
        settings = {**stated, "architecture": architecture}
        if not timm.is_model(architecture):
            raise SourceError(f"{file}: timm cannot build {architecture}: it has no such model")
        if not READING.isdisjoint(args):
            raise SourceError(f"{file}: model_args may not hold {', '.join(READING & set(args))}")
        check_fields(args, TIMM_ARGS, f"{file}: model_args")
        classes = config.get("num_classes", settings.get("num_classes", 1000))
        return cls(architecture, args, settings, classes, config.get("label_names", settings.get("label_names")))

    def __call__(self, pretrained: bool = False) -> nn.Module:
        """The model with random weights; `pretrained` lets timm load those that `timm_filters` keeps it from."""
        model: nn.Module = timm.create_model(
            self.architecture,
            pretrained=pretrained,
            num_classes=self.classes,
            pretrained_cfg=self.settings,
            **self.model_args,
        )
        return model

    @property
    def backbone(self) -> dict[str, Any]:
        """What is recorded to rebuild it, with the arguments that timm takes from `pretrained_cfg`."""
        known = timm.get_pretrained_cfg(self.architecture)
        usual: dict[str, Any] = known.to_dict() if known else {}
        args = dict(self.model_args)
        size, usual_size = (tuple(cfg.get("input_size") or ()) for cfg in (self.settings, usual))
        if size and size[:1] != usual_size[:1]:
            args.setdefault("in_chans", size[0])
        if self.settings.get("fixed_input_size") and size[1:] != usual_size[1:]:
            args.setdefault("img_size", list(size[1:]))
        pool = self.settings.get("global_pool")
        if pool and pool != usual.get("global_pool"):
            args.setdefault("global_pool", pool)
        return {"library": NAME, "architecture": self.architecture, "model_args": args}


def _without_background(state: dict[str, Tensor], model: nn.Module, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state without the rows of the classifier before the first class, if its config counts any and it has them."""
    extra = settings.get("label_offset") or 0
    classifiers = settings.get("classifier") or ()
    names = [classifiers] if isinstance(classifiers, str) else classifiers
    own = model.state_dict()
    return {
        key: value[extra:] if key.rpartition(".")[0] in names and len(value) == len(own[key]) + extra else value
        for key, value in state.items()
    }


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
    described["input_size"] = _input_size(model, described)
    for key in ("label_names", "label_descriptions"):  # they belong to one task, and not to a merge
        described.pop(key, None)
    settings, transform = _preprocessing(described)
    described |= {key: settings[key] for key in ("mean", "std")}
    classes = getattr(known, "num_classes", 0)  # feature extractors of timm have none
    place = f"{folder}/config.json: label_names" if folder else f"label_names in the pretrained_cfg of {name}"
    return Source(
        name=name,
        model=model,
        backbone=backbone,
        labels=class_names(labels, classes, place) if classes else [],
        preprocessing=settings,
        transform=transform,
        origin=origin,
        settings=described,
        folder=folder,
        kind="image-classification" if classes else "image-feature-extraction",
        problem="binary" if classes == 1 else "single-label",
    )


def _input_size(model: nn.Module, described: Mapping[str, Any]) -> tuple[int, int, int]:
    """(channels, height, width) that a model was built for; its `pretrained_cfg` may still state those of its family.

    The channels are `in_chans`, or else those of the first convolution.
    """
    _, height, width = described.get("input_size") or (3, 224, 224)
    fixed = getattr(getattr(model, "patch_embed", None), "img_size", None)
    if fixed is not None:
        height, width = fixed
    channels = getattr(model, "in_chans", None)
    if channels is None:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return int(channels), int(height), int(width)


def _preprocessing(described: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Tensor]]:
    """The settings of a `pretrained_cfg` as timm resolves them, with a mean and std per channel, and the transform."""
    resolved = timm.data.resolve_data_config(pretrained_cfg=described)
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in resolved.items()}
    channels = settings["input_size"][0]
    for key in ("mean", "std"):
        values = per_channel(settings[key], channels)
        if values is None:
            reason = (
                f"{described.get('architecture')}: {wrong_count(f'{key} in pretrained_cfg', settings[key], channels)}"
            )
            return settings, failing(reason)
        settings[key] = values
    return settings, timm.data.create_transform(**settings, is_training=False)

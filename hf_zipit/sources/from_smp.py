"""Models of segmentation-models-pytorch (smp), an optional extra: loaded, outlined and wrapped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import file_digest, no_larger_than, read_weights, weight_files
from hf_zipit.sources.source import NOWHERE, Source
from hf_zipit.sources.states import fill, unwrapped
from hf_zipit.text import load_errors

NAME = "segmentation-models-pytorch"


def owns(config: Mapping[str, Any]) -> bool:
    """Whether smp wrote this `config.json`."""
    return "_model_class" in config


def read_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load a folder written by smp; see `Library`."""
    files = weight_files(folder, access.allow_pickle)
    with (
        load_errors(f"{folder}: {NAME} cannot build it", Exception),
        no_larger_than(files, folder / "config.json"),
    ):
        model = _build(config)
    state, prefix = unwrapped(read_weights(files), model, files[0])
    fill(model, state, files[0], prefix)
    return _source(model, config, name, {**origin, "sha256": file_digest(files)}, folder)


def outline_folder(folder: Path, config: dict[str, Any], device: str) -> Source:
    """Build the model of a folder with random weights, always on the CPU; see `Library`."""
    return _source(_build(config), config, None, dict(NOWHERE), folder)


def wrap_module(model: nn.Module, model_args: dict[str, Any] | None) -> Source | None:
    """A model of smp in memory; `None` for any other."""
    config: Any = getattr(model, "config", None)
    if not type(model).__module__.startswith("segmentation_models_pytorch") or config is None:
        return None
    return _source(model, {**config, "_model_class": type(model).__name__}, None, dict(NOWHERE))


def _build(config: Mapping[str, Any]) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise SourceError(f"this model needs {NAME}: pip install 'hf-zipit[segmentation]'") from None
    args = {key: value for key, value in config.items() if not key.startswith("_")}
    name = str(config["_model_class"])
    cls = getattr(smp, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise SourceError(f"{NAME} has no model class {name!r}")
    model: nn.Module = cls(**{**args, "encoder_weights": None})
    return model.eval()


def _source(
    model: nn.Module, config: Mapping[str, Any], name: str | None, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    args = {key: value for key, value in config.items() if not key.startswith("_")} | {"encoder_weights": None}
    return Source(
        name=name or str(config["_model_class"]).lower(),
        model=model,
        backbone={"library": NAME, "architecture": config["_model_class"], "model_args": args},
        labels=[f"LABEL_{i}" for i in range(int(args.get("classes", 1)))],
        preprocessing={},
        transform=None,
        origin=origin,
        settings={},
        folder=folder,
        kind="image-segmentation",
    )

"""Source models: Hub ids, local folders or loaded modules -> `Source`, and whether they can be merged."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import HUB_ID, fetch, no_model
from hf_zipit.sources.libraries import from_module, timm_folder, transformers_folder, untrained
from hf_zipit.sources.merges import merged_folder, merged_source
from hf_zipit.sources.source import Source
from hf_zipit.sources.whole_models import from_whole_module, is_whole, whole_folder

_log = logging.getLogger("hf_zipit")


def load(
    source: str | Path | nn.Module | Source, model_args: dict[str, Any] | None = None, access: Access = NOTHING
) -> Source:
    """Load one model.

    Args:
        source: a Hub id (`user/name`, `user/name@revision`), a folder with `config.json` and `model.safetensors`, or
            a timm module made by `timm.create_model`. It may itself be a merge. A `Source` is returned as it is.
        model_args: the keyword arguments a module was created with, apart from the number of classes; timm does not
            keep them, and a saved merge needs them.
        access: what the user allows: an access token of the Hub, code that comes with models, pickled weights.

    Raises:
        SourceError: it is no model, its weights are missing, damaged, pickled or do not fit, its kind is unknown, or
            the Hub does not give it.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ZipItForImageClassification):
        return merged_source(source, "merged", {"id": None, "folder": None, "revision": None, "sha256": None})
    if isinstance(source, nn.Module):
        return from_whole_module(source) or from_module(source, model_args)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, {"id": None, "folder": path.resolve().name, "revision": None}, access)
    if path.exists():
        raise SourceError(f"{source} is a file: a model is a folder with config.json and model.safetensors")
    if HUB_ID.fullmatch(str(source)):
        got = fetch(str(source), access)
        origin = {"id": got.name, "folder": None, "revision": got.revision}
        return _from_folder(got.folder, origin, access, got.name.partition("/")[2])
    raise SourceError(no_model(source))


def load_or_build(model: str, access: Access = NOTHING) -> Source:
    """A model to look at: as `load`, or a timm architecture by name with random weights.

    Raises:
        SourceError: it is neither.
    """
    source = load(model, access=access) if Path(model).exists() or "/" in model else untrained(model)
    if "input_size" in source.preprocessing:
        return source
    _log.warning("%s does not say how large its images are: it is looked at with 224 x 224 pixels", source.name)
    return replace(source, preprocessing={**source.preprocessing, "input_size": (3, 224, 224)})


def _from_folder(folder: Path, origin: dict[str, Any], access: Access, name: str | None = None) -> Source:
    name = name or folder.resolve().name
    config = read_json(folder / "config.json")
    if config.get("model_type") == "zipit":
        return merged_folder(folder, name, origin)
    if config.get("model_type") == "zipit-model":
        raise SourceError(f"{folder} is a merge of models of several classes: merge its sources instead")
    if isinstance(config.get("architecture"), str):
        return timm_folder(folder, config, name, origin, access)
    if is_whole(config):
        return whole_folder(folder, config, name, origin, access)
    if config.get("model_type"):
        return transformers_folder(folder, config, name, origin, access)
    raise SourceError(f"{folder}/config.json names neither a timm architecture nor a transformers model_type")

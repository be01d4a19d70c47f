"""Hub ids, local folders and loaded modules -> `Source`."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.adapters import read_adapter
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import HUB_ID, fetch, is_adapter, no_model
from hf_zipit.sources.from_timm import untrained
from hf_zipit.sources.in_memory import check_own_code, inner_module, not_rebuildable
from hf_zipit.sources.library import LIBRARIES, known_library
from hf_zipit.sources.merges import merged_folder, merged_source
from hf_zipit.sources.pixels import check_transform
from hf_zipit.sources.processors import PROCESSOR_FILE
from hf_zipit.sources.source import NOWHERE, Source
from hf_zipit.sources.states import check_finite
from hf_zipit.text import load_errors

_log = logging.getLogger("hf_zipit")


def load_source(
    source: str | Path | nn.Module | Source, model_args: dict[str, Any] | None = None, access: Access = NOTHING
) -> Source:
    """Load one model to merge.

    Args:
        source: a Hub id (`user/name`, `user/name@revision`), a folder with `config.json` and `model.safetensors`, a
            folder with an adapter of PEFT, or a module of timm, transformers or segmentation-models-pytorch. It may
            itself be a merge. A `Source` is returned as it is.
        model_args: the keyword arguments a timm module was created with, apart from the number of classes; timm does
            not keep them, and a saved merge needs them.
        access: what the user allows: an access token of the Hub, code that comes with models, pickled weights.

    Raises:
        SourceError: it is not a model; its weights are missing, damaged, pickled or do not fit; no known library wrote
            it; or it cannot be downloaded.

    >>> load_source("user/birds").labels  # doctest: +SKIP
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        return _from_module(source, model_args)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, {"id": None, "folder": path.resolve().name, "revision": None}, access)
    if path.exists():
        raise SourceError(f"{source} is a file; pass a folder with config.json and model.safetensors")
    if HUB_ID.fullmatch(str(source)):
        found = fetch(str(source), access)
        origin = {"id": found.name, "folder": None, "revision": found.revision}
        return _from_folder(found.folder, origin, access, found.name.partition("/")[2])
    raise SourceError(no_model(source))


def load_or_build(model: str, access: Access = NOTHING) -> Source:
    """A model to inspect: as `load_source`, or a timm architecture by name with random weights.

    Raises:
        SourceError: it is neither.
    """
    source = load_source(model, access=access) if Path(model).exists() or "/" in model else untrained(model)
    if "input_size" in source.preprocessing:
        return source
    _log.warning(
        "%s does not state its input size; 224 x 224 pixels are assumed: input_size in its config.json decides",
        source.name,
    )
    return replace(source, preprocessing={**source.preprocessing, "input_size": (3, 224, 224)})


def _from_module(module: nn.Module, model_args: dict[str, Any] | None) -> Source:
    model = inner_module(module)
    check_own_code(model)
    check_finite(model, f"the {type(model).__name__} in memory")
    if isinstance(model, ZipItForImageClassification):
        return merged_source(model, "merged", dict(NOWHERE))
    for library in LIBRARIES:
        source = library.wrap_module(model, model_args)
        if source is not None:
            return source
    raise not_rebuildable(model)


def _from_folder(folder: Path, origin: dict[str, Any], access: Access, name: str | None = None) -> Source:
    name = name or folder.resolve().name
    if is_adapter(folder):
        return read_adapter(folder, name, origin, access)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "zipit":
        return merged_folder(folder, name, origin)
    if config.get("model_type") == "zipit-model":
        raise SourceError(f"{folder} is a merge of models of several kinds; merge its sources instead")
    library = known_library(config, folder)
    with load_errors(f"{folder} cannot be read", Exception):  # its config may hold anything
        source = library.read_folder(folder, config, name, origin, access)
    stated = PROCESSOR_FILE if source.processor is not None else "config.json: pretrained_cfg"
    check_finite(source.model, folder)
    size = source.input_size if "input_size" in source.preprocessing else None
    check_transform(source.name, size, source.transform, f"{folder}/{stated}")
    return source

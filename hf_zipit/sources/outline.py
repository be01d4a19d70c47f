"""What a merge would do and cost, before weights are downloaded or anything is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_zipit.errors import SourceError
from hf_zipit.models.modeling_zipit import build_backbone
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import read_json, weight_files
from hf_zipit.sources.download import HUB_ID, look, no_model
from hf_zipit.sources.libraries import from_module, processor_in
from hf_zipit.sources.load import load
from hf_zipit.sources.source import Source
from hf_zipit.sources.whole_models import is_whole, outline

_NOT_STRUCTURE = {"id2label", "label2id", "num_labels", "architectures", "transformers_version", "_name_or_path"}


def _outline(ref: str, access: Access, device: str = "meta") -> tuple[Source, int]:
    """A model's structure from its configuration, without weights, and the bytes of weights still to download."""
    if Path(ref).is_dir():
        weight_files(Path(ref), access.allow_pickle)
        folder, name, missing = Path(ref), Path(ref).resolve().name, 0
    elif HUB_ID.fullmatch(ref) and not Path(ref).exists():
        found, missing = look(ref, access)
        folder, name = found.folder, found.name.partition("/")[2]
    else:
        raise SourceError(no_model(ref))
    config = read_json(folder / "config.json")
    if str(config.get("model_type")).startswith("zipit"):  # what lies behind its trunk is known from its weights only
        return load(ref, access=access), 0
    try:
        with torch.device("cpu" if is_whole(config) else device):
            source = outline(folder, config, name) if is_whole(config) else _from_config(config, folder)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder}/config.json describes no model that can be built: {error}") from None
    return replace(source, name=name, folder=folder, origin={**source.origin, "folder": str(folder)}), missing


def _from_config(config: dict[str, Any], folder: Path) -> Source:
    if isinstance(config.get("architecture"), str):
        args = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
        settings = config.get("pretrained_cfg", {})
        classes = config.get("num_classes", settings.get("num_classes", 1000))
        backbone = {"library": "timm", "architecture": config["architecture"], "model_args": args}
        model: Any = build_backbone(backbone, classes)
        model.pretrained_cfg = {**settings, "architecture": config["architecture"]}
        return from_module(model, args)
    classes = len(config.get("id2label", {})) or 2
    backbone = {"library": "transformers", "config": {k: v for k, v in config.items() if k not in _NOT_STRUCTURE}}
    if config.get("architectures"):
        backbone["architecture"] = config["architectures"][0]
    return from_module(build_backbone(backbone, classes), None, processor_in(folder))

"""A merge as a source of another merge.

A merged model is its trunk and a branch for each copy of the layers behind it. Merged again, the trunk is matched and
averaged like any model's, once, and the branches are carried over:

* a full merge, whose branches are classifiers on merged units, is a plain model with the classes of all its tasks: it
  can be merged up to any layer, and its own layers behind the cut stay shared by its tasks;
* one that was cut has layers of each task behind its trunk, which read the trunk through a gather. It can be merged
  again up to the same cut; the new gather after the old one is one gather.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hf_zipit.errors import SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, build_backbone, resize
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.models.steps import step_name
from hf_zipit.sources.checkpoint import digest, no_larger_than, weight_files
from hf_zipit.sources.libraries import merged_source as library_source
from hf_zipit.sources.source import Branch, Source

_KEPT = ("cut", "recipe", "data", "sources")  # what a merge of merges tells of the merges it was made of


Kind = TypeVar("Kind", bound=ZipItPreTrainedModel)


def open_merged(folder: Path, kind: type[Kind]) -> Kind:
    """The merged model of a kind in a folder, in eval mode.

    Raises:
        SourceError: the folder does not hold a whole one.
    """
    try:
        with no_larger_than(weight_files(folder), folder / "config.json"):
            model, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except SourceError:
        raise
    except Exception as error:  # OSError, SafetensorError, ValueError and others, depending on what is wrong
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"cannot load the merged model {folder}: {first}") from error
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"{folder} does not hold a whole merged model: {', '.join(wrong[:3])}")
    out: Kind = model.eval()
    return out


def merged_folder(folder: Path, name: str, origin: dict[str, Any]) -> Source:
    """A folder with a merged model in it.

    Raises:
        SourceError: it does not hold a whole one.
    """
    return merged_source(
        open_merged(folder, ZipItForImageClassification),
        name,
        {**origin, "sha256": digest(weight_files(folder))},
        folder,
    )


def merged_source(
    network: ZipItForImageClassification, name: str, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    """A merged model as a source; the tensors are shared with it."""
    config = network.config
    trunk = network.trunk.state_dict()
    labels = [(h["task"], [h["id2label"][i] for i in sorted(h["id2label"])]) for h in config.heads or []]
    tasks = [tuple(labels[i] for i in group) for group in config.branches]
    heads = [head.state_dict() for head in network.heads]
    joined = _joined(config, trunk, heads)
    if joined is not None:
        branches: tuple[Branch, ...] = (Branch(tuple(task for group in tasks for task in group), joined),)
    else:
        gathers = [getattr(unmerge, "index", None) for unmerge in network.unmerge]
        branches = tuple(Branch(*parts) for parts in zip(tasks, heads, gathers, strict=True))
        joined = trunk | heads[0]  # the trunk with the right modules behind it; what they compute is never read
    model = build_backbone(config.backbone or {}, sum(len(names) for _, names in branches[0].tasks))
    for key, value in model.state_dict().items():
        if key in joined and joined[key].shape != value.shape:
            resize(model, key, list(joined[key].shape))
    model.load_state_dict(joined, assign=True)
    about: dict[str, Any] = {"cut": config.cut, **(config.zipit or {})}
    origin = {**origin, "merge": {"tasks": config.tasks, **{key: about.get(key) for key in _KEPT}}}
    source = library_source(model.eval(), name, config, origin, folder)
    fixed = None if branches[0].state is joined else tuple(map(step_name, config.trunk or []))
    processor = source.processor or network.image_processor
    return replace(source, branches=branches, trunk=fixed, cut=config.cut, network=network, processor=processor)


def _joined(config: ZipItConfig, trunk: dict[str, Tensor], heads: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The state of one plain model with the classes of all tasks, where the branches are classifiers alone."""
    if not config.head:
        return trunk
    with torch.device("meta"):
        few, more = (build_backbone(config.backbone or {}, n).state_dict() for n in (2, 3))
    classifier = {key for key, value in few.items() if value.shape != more[key].shape}
    if config.unmerge or set(heads[0]) != classifier:
        return None
    return trunk | {key: torch.cat([head[key] for head in heads]) for key in heads[0]}

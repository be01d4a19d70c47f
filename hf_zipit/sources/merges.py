"""A merge as a source of another merge.

A merged model is a trunk, and a branch for each copy of the layers after it. When it is merged again, its trunk is
matched and averaged like any other model, and its branches are carried over:

* A full merge, whose branches are classifiers on merged units, is a plain model with the classes of all its tasks. It
  can be merged up to any layer. Its own layers after the cut stay shared by its tasks.
* A merge with a cut has separate layers for each task after its trunk, which gather their units from the trunk. It can
  be merged again up to the same cut. The new gather and the old one are composed into one.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, build_backbone, resize, set_attributes
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.models.steps import step_name
from hf_zipit.sources import from_timm, from_transformers
from hf_zipit.sources.checkpoint import file_digest, no_larger_than, read_json, weight_files
from hf_zipit.sources.fields import MAPPING, TIMM_IMAGES, check_fields
from hf_zipit.sources.pixels import check_transform
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.sources.processors import PROCESSOR_FILE
from hf_zipit.sources.source import Branch, Source
from hf_zipit.sources.states import check_finite
from hf_zipit.text import load_errors

_KEPT = ("cut", "recipe", "data", "sources")  # what a merge of merges records about each merge in it

Kind = TypeVar("Kind", bound=ZipItPreTrainedModel)


def open_merged(folder: Path, kind: type[Kind]) -> Kind:
    """Load a merged model of a given class from a folder, in eval mode.

    Raises:
        SourceError: the folder does not hold a complete one.
    """
    file = folder / "config.json"
    config = read_json(file)
    stated = [key for key in ("preprocessing", "pretrained_cfg") if config.get(key) is not None]
    check_fields(config, dict.fromkeys(stated, MAPPING), str(file))
    for key in stated:
        check_fields(config[key], TIMM_IMAGES, f"{file}: {key}")
    with (
        load_errors(f"cannot load the merged model {folder}", Exception),  # OSError, SafetensorError, ValueError, ...
        no_larger_than(weight_files(folder), file),
    ):
        model, info = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"{folder} does not hold a complete merged model: {', '.join(wrong[:3])}")
    check_finite(model, folder)
    with load_errors(f"cannot prepare images for the merged model {folder}", Exception):
        size, transform = preprocessing_of(model)
        check_transform(
            folder.name, size, transform, f"{file}: {stated[0]}" if stated else f"{folder}/{PROCESSOR_FILE}"
        )
    out: Kind = model.eval()
    return out


def merged_folder(folder: Path, name: str, origin: dict[str, Any]) -> Source:
    """A folder that holds a merged model, as a source.

    Raises:
        SourceError: it does not hold a complete one.
    """
    network = open_merged(folder, ZipItForImageClassification)
    with load_errors(f"cannot use the merged model {folder}", Exception):  # its config describes another one
        return merged_source(network, name, {**origin, "sha256": file_digest(weight_files(folder))}, folder)


def merged_source(
    network: ZipItForImageClassification, name: str, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    """A merged model as a source.

    Args:
        network: the merged model; the source shares its tensors.
        name: the name of the source.
        origin: where the model came from.
        folder: where it was loaded from, if it was.
    """
    config = network.config
    trunk = network.trunk.state_dict()
    labels = [(h["task"], [h["id2label"][i] for i in sorted(h["id2label"])]) for h in config.heads or []]
    tasks = [tuple(labels[i] for i in group) for group in config.branches]
    meanings = [head.get("problem", "single-label") for head in config.heads or []]
    problems = [tuple(meanings[i] for i in group) for group in config.branches]
    heads = [head.state_dict() for head in network.heads]
    joined = _joined(config, trunk, heads)
    if joined is not None:
        all_tasks = tuple(task for group in tasks for task in group)
        all_problems = tuple(problem for group in problems for problem in group)
        branches: tuple[Branch, ...] = (Branch(all_tasks, joined, problems=all_problems),)
        steps = None
        state = joined
    else:
        gathers = [getattr(unmerge, "index", None) for unmerge in network.unmerge]
        branches = tuple(Branch(*parts) for parts in zip(tasks, heads, gathers, problems, strict=True))
        steps = tuple(map(step_name, config.trunk or []))
        others = [sum(name.startswith(f"heads.{k}.") for name in config.shapes or {}) for k in range(len(heads))]
        usual = heads[others.index(min(others))]  # heads of narrower parents do not fit the trunk
        state = usual | trunk  # the modules behind the trunk must exist, but their output is never read
    model = _backbone(config, sum(len(names) for _, names in branches[0].tasks), state)
    if not isinstance(config.zipit, dict | None):
        raise SourceError(f"{name}: 'zipit' in its config.json is not a mapping: the record of the merge is damaged")
    about: dict[str, Any] = {"cut": config.cut, **(config.zipit or {})}
    origin = {**origin, "merge": {"tasks": config.tasks, **{key: about.get(key) for key in _KEPT}}}
    classes = [label for _, names in labels for label in names]
    if (config.backbone or {})["library"] == from_timm.NAME:
        source = from_timm.source_of_merge(model, name, config, classes, origin, folder)
    else:
        source = from_transformers.source_of_merge(model, name, classes, origin, folder)
    processor = source.processor or network.image_processor
    return replace(source, branches=branches, trunk=steps, cut=config.cut, network=network, processor=processor)


def _backbone(config: ZipItConfig, classes: int, state: dict[str, Tensor]) -> nn.Module:
    """The backbone with the tensors of `state`, at their widths."""
    model = build_backbone(config.backbone or {}, classes)
    for key, value in model.state_dict().items():
        if key in state and state[key].shape != value.shape:
            resize(model, key, list(state[key].shape))
    set_attributes(model, config.attributes or {})
    model.load_state_dict(state, assign=True)
    return model.eval()


def _joined(config: ZipItConfig, trunk: dict[str, Tensor], heads: list[dict[str, Tensor]]) -> dict[str, Tensor] | None:
    """The state of one plain model with the classes of all tasks; `None` if the branches are more than classifiers."""
    if not config.head:
        return trunk
    with torch.device("meta"):
        few, more = (build_backbone(config.backbone or {}, n).state_dict() for n in (2, 3))
    classifier = {key for key, value in few.items() if value.shape != more[key].shape}
    if config.unmerge or set(heads[0]) != classifier:
        return None
    return trunk | {key: torch.cat([head[key] for head in heads]) for key in heads[0]}

"""A fully merged model as an ordinary checkpoint of timm or transformers, which loads without hf-zipit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, build_backbone
from hf_zipit.models.steps import step_name
from hf_zipit.saving.heads import plain_backbone
from hf_zipit.saving.widths import with_widths
from hf_zipit.sources import from_timm, from_transformers

FORMATS = ("zipit", "timm", "transformers")
ELSE = "or use `hf-zipit export --format onnx` (or torch)"


def own_library(config: ZipItConfig) -> str:
    """The library of a merge's parents, whose ordinary checkpoint it can become."""
    return str((config.backbone or {})["library"])


def check_format(config: ZipItConfig, library: str, task: str | None = None) -> None:
    """Refuse a format that a merge does not have.

    Args:
        config: of the merge.
        library: `zipit`, `timm` or `transformers`.
        task: the only task to keep, if not all.

    Raises:
        OptionError: an unknown format or task, or one that does not fit the library of the models.
        OutputError: the merge has no ordinary form.
    """
    backbone = config.backbone or {}
    if library not in FORMATS:
        raise OptionError(f"unknown format '{library}'; formats: {', '.join(FORMATS)}")
    if library == "zipit":
        if task is not None:
            raise OptionError("the format zipit keeps all tasks; choose one with active_task when you load the model")
        return
    if config.model_type != ZipItConfig.model_type:
        raise OutputError(f"an ordinary {library} model has one kind of output; keep the format zipit, {ELSE}")
    if backbone["library"] != library:
        also = "; transformers reads what timm writes, too" if backbone["library"] == "timm" else ""
        raise OptionError(f"these are models of {backbone['library']}; use the format {backbone['library']}{also}")
    if task is not None and task not in config.tasks:
        raise OptionError(f"unknown task '{task}'; tasks: {', '.join(config.tasks)}")
    if config.cut is not None or config.unmerge is not None:
        where = f"after the cut {config.cut}" if config.cut else "behind the merged ones"
        raise OutputError(
            f"an ordinary {library} model has no place for the layers that each task keeps {where}; "
            f"merge without a cut, or keep the format zipit, {ELSE}"
        )
    if library == "timm" and not from_timm.knows(backbone["architecture"]):
        raise OutputError(
            f"there is no ordinary timm checkpoint of a {backbone['architecture']}: timm has no such architecture, it "
            "comes with hf-zipit. Keep the format zipit: it includes the code, and loads without hf-zipit with "
            "trust_remote_code=True"
        )
    check_widths(config, library)


def check_widths(config: ZipItConfig, library: str) -> None:
    """Refuse a merge whose widths no ordinary model has.

    Raises:
        OutputError: the message names a tensor.
    """
    with torch.device("meta"):
        planned = build_backbone(_described(config), 2).state_dict()
    for name, shape in (config.shapes or {}).items():
        inner = name.removeprefix("trunk.")
        if name != inner and inner in planned and list(planned[inner].shape) != list(shape):
            raise _no_such_widths(library, inner, shape, list(planned[inner].shape))


def plain_model(merged: ZipItForImageClassification, library: str, task: str | None = None) -> nn.Module:
    """The ordinary model of timm or transformers that computes the same as a fully merged model.

    Args:
        merged: the merged model.
        library: `timm` or `transformers`, the library of the sources.
        task: keep only the classes of this task. By default one classifier has the classes of all tasks; it returns
            their raw logits side by side, without the merged model's log-softmax per task.

    Raises:
        OptionError: the sources are from another library, or there is no such task.
        OutputError: the merge is not full, or its library does not have the architecture, or not with these widths.
    """
    config = merged.config
    check_format(config, library, task)
    chosen = [i for i, name in enumerate(config.tasks) if task in (None, name)]
    sizes = [len(head["id2label"]) for head in config.heads or []]
    net = build_backbone(_described(config), sum(sizes[i] for i in chosen))
    planned = {name: value.shape for name, value in net.state_dict().items()}
    state = {**_never_read(merged, net), **_state(merged, planned, chosen)}
    for name in planned.keys() | state.keys():
        if name not in state or name not in planned or state[name].shape != planned[name]:
            raise _no_such_widths(library, name, _shape(state, name), _shape(net.state_dict(), name))
    net.load_state_dict(state)
    return net.eval()


def write_plain(
    merged: ZipItForImageClassification, folder: Path, library: str, task: str | None, processor: Any
) -> None:
    """Write config, weights and preprocessing of the ordinary model into an existing folder.

    Args:
        merged: the merged model.
        folder: where to write.
        library: `timm` or `transformers`, the library of the sources.
        task: the only task to keep, if not all.
        processor: the image processor of transformers, if there is one.

    Raises:
        OptionError, OutputError: as `plain_model`.
    """
    net = plain_model(merged, library, task)
    labels: dict[int, str] = ZipItConfig.from_dict({**merged.config.to_dict(), "active_task": task}).id2label
    if library == from_transformers.NAME:
        from_transformers.write_checkpoint(net, folder, labels, processor)
        return
    args = _described(merged.config).get("model_args", {})
    from_timm.write_checkpoint(net, folder, list(labels.values()), merged.config.pretrained_cfg, args)


def _described(config: ZipItConfig) -> dict[str, Any]:
    """The description of the ordinary model with the heads and widths of a merge, if there is one."""
    trunk = {name.removeprefix("trunk."): shape for name, shape in (config.shapes or {}).items()}
    return with_widths(plain_backbone(config), trunk)


def _state(
    merged: ZipItForImageClassification, planned: Mapping[str, torch.Size], chosen: Sequence[int]
) -> dict[str, Tensor]:
    """The trunk's tensors and the chosen tasks' rows of all classifiers, under the names of the ordinary model."""
    config = merged.config
    state = merged.state_dict()
    out = {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}
    heads = [head.state_dict() for head in merged.heads]
    for name in heads[0] if heads else ():
        out[name] = torch.cat([head[name] for head in heads]) if len(heads) > 1 else heads[0][name]
    sizes = [len(head["id2label"]) for head in config.heads or []]
    starts: dict[int, int] = {}
    for k in (k for branch in config.branches for k in branch):  # the order of the classifiers' rows
        starts[k] = sum(sizes[other] for other in starts)
    rows = torch.cat([torch.arange(starts[k], starts[k] + sizes[k]) for k in chosen])
    odd = {name for name, value in out.items() if value.shape != planned.get(name)}
    whole = {name for name in (heads[0] if heads else odd) if out[name].ndim and len(out[name]) == sum(sizes)}
    return {name: value[rows] if name in whole else value for name, value in out.items()}


def _never_read(merged: ZipItForImageClassification, net: nn.Module) -> dict[str, Tensor]:
    """The tensors of the ordinary model that no step of a merge has, because no classification reads them.

    The vision tower of CLIP has a norm for its pooled output, for example.
    """
    steps = [*(merged.config.trunk or []), *(merged.config.head or [])]
    owns = merged.config.owns or {}
    held = [f"{name}." for step in map(step_name, steps) for name in owns.get(step, [step])]
    return {n: v for n, v in net.state_dict().items() if held and not f"{n}.".startswith(tuple(held))}


def _no_such_widths(library: str, name: str, found: object, usual: object) -> OutputError:
    """The error of a merge whose widths no ordinary model has."""
    return OutputError(
        f"no ordinary {library} model has these widths: {name} is {found} instead of {usual}. Keep the width of the "
        f"parents (of a ViT all but that of its MLPs), or the format zipit, {ELSE}"
    )


def _shape(state: Mapping[str, Tensor], name: str) -> list[int] | str:
    return list(state[name].shape) if name in state else "absent"

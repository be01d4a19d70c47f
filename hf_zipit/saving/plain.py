"""A fully merged model as an ordinary checkpoint of timm or transformers, which loads without hf-zipit."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, build_backbone

FORMATS = ("zipit", "timm", "transformers")


def check_format(config: ZipItConfig, library: str, task: str | None = None) -> None:
    """Whether a merge of this kind can be written so; what its widths say is found when it is built.

    Raises:
        OptionError: an unknown format or task, or one that does not go with the models' library.
        OutputError: the merge has no ordinary form; the message says why and what to do.
    """
    backbone = config.backbone or {}
    if library not in FORMATS:
        raise OptionError(f"unknown format '{library}'; formats: {', '.join(FORMATS)}")
    if library == "zipit":
        if task is not None:
            raise OptionError("--format zipit keeps all tasks: choose one when it is loaded, with active_task")
        return
    if config.model_type != ZipItConfig.model_type:
        raise OutputError(f"an ordinary {library} model has one kind of output: keep --format zipit")
    if backbone["library"] != library:
        also = "; transformers reads what timm writes, too" if backbone["library"] == "timm" else ""
        raise OptionError(f"these are models of {backbone['library']}: use --format {backbone['library']}{also}")
    if task is not None and task not in config.tasks:
        raise OptionError(f"unknown task '{task}'; tasks: {', '.join(config.tasks)}")
    if config.cut is not None or config.unmerge is not None:
        where = f"after the cut {config.cut}" if config.cut else "behind the merged ones"
        raise OutputError(
            f"an ordinary {library} model has no place for the layers that each task keeps {where}: "
            "merge without --cut, or keep --format zipit"
        )
    if library == "timm" and not timm.model_entrypoint(backbone["architecture"]).__module__.startswith("timm."):
        raise OutputError(
            f"there is no ordinary timm checkpoint of a {backbone['architecture']}: timm has no such architecture, it "
            "comes with hf-zipit. Use the merge in its own format (zipit): it brings its code, and loads without "
            "hf-zipit with trust_remote_code=True"
        )


def plain_model(merged: ZipItForImageClassification, library: str, task: str | None = None) -> nn.Module:
    """The ordinary model of its library that computes what a fully merged model does.

    Args:
        merged: the merged model.
        library: `timm` or `transformers`, as the sources were.
        task: keep the classes of this task only. Otherwise one classifier has the classes of all tasks, and the
            logits are the tasks' raw logits side by side: not normalised per task as those of the merged model.

    Raises:
        OptionError: it is a model of another library, or has no such task.
        OutputError: it is not fully merged, its widths have changed, or its library does not have the architecture.
    """
    config = merged.config
    check_format(config, library, task)
    chosen = [i for i, name in enumerate(config.tasks) if task in (None, name)]
    sizes = [len(head["id2label"]) for head in config.heads or []]
    net = build_backbone(config.backbone or {}, sum(sizes[i] for i in chosen))
    planned = {name: value.shape for name, value in net.state_dict().items()}
    state = _state(merged, planned, chosen)
    for name in planned.keys() | state.keys():
        if name not in state or name not in planned or state[name].shape != planned[name]:
            found, usual = (list(shapes[name]) if name in shapes else "absent" for shapes in (_shapes(state), planned))
            raise OutputError(
                f"no ordinary {library} model has these widths: {name} is {found}, and usually {usual}. "
                "Merge at the parents' width, or keep --format zipit"
            )
    net.load_state_dict(state)
    return net.eval()


def write_plain(
    merged: ZipItForImageClassification, folder: Path, library: str, task: str | None, processor: Any
) -> None:
    """Write config, weights and preprocessing of the ordinary model into a folder that exists."""
    net: Any = plain_model(merged, library, task)
    labels: dict[int, str] = ZipItConfig.from_dict({**merged.config.to_dict(), "active_task": task}).id2label
    if library == "transformers":
        net.config.id2label, net.config.label2id = labels, {name: i for i, name in labels.items()}
        net.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return
    known = {k: v for k, v in merged.config.pretrained_cfg.items() if k not in ("label_names", "num_classes")}
    net.pretrained_cfg = {**known, "num_classes": len(labels)}
    args = (merged.config.backbone or {}).get("model_args", {})
    named = {"label_names": list(labels.values())}
    timm.models.save_for_hf(net, folder, model_config=named, model_args=args, safe_serialization=True)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # transformers passes it a second time, and fails
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _state(
    merged: ZipItForImageClassification, planned: Mapping[str, torch.Size], chosen: Sequence[int]
) -> dict[str, Tensor]:
    """The trunk's tensors and the chosen tasks' rows of all classifiers, under the names of the ordinary model."""
    config, state = merged.config, merged.state_dict()
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


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}

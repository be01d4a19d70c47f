"""The arguments that build an ordinary model with as many attention heads as a merge has."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hf_zipit.errors import OutputError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import build_backbone

KEYS = ("num_attention_heads", "num_heads")  # how configs and arguments name the number of heads


def plain_backbone(config: ZipItConfig) -> dict[str, Any]:
    """The description of an ordinary model with the attributes of a merge.

    Args:
        config: of the merge.

    Raises:
        OutputError: no ordinary model has these heads.
    """
    backbone = dict(config.backbone or {})
    wanted = config.attributes or {}
    if not wanted:
        return backbone
    for other in _candidates(backbone, wanted):
        if _agrees(other, wanted):
            return other
    heads = next(value for held in wanted.values() for name, value in held.items() if name.endswith("heads"))
    raise OutputError(
        f"no ordinary {backbone['library']} model has the attention heads of this merge ({heads} in the first layer); "
        "merge with heads pair, or keep the format zipit"
    )


def _agrees(backbone: dict[str, Any], wanted: Mapping[str, Mapping[str, int | float]]) -> bool:
    """Whether a description builds a model whose attention modules have these attributes."""
    try:
        with torch.device("meta"):
            net = build_backbone(backbone, 2)
    except Exception:  # a library fails in many ways, as where the width is no multiple of the heads
        return False
    return all(
        vars(net.get_submodule(path)).get(name) == value
        for path, values in wanted.items()
        for name, value in values.items()
    )


def _candidates(backbone: dict[str, Any], wanted: Mapping[str, Mapping[str, int | float]]) -> Iterator[dict[str, Any]]:
    """Descriptions with other numbers of heads, or of units of a head."""
    with torch.device("meta"):
        net = build_backbone(backbone, 2)
    pairs = [(_heads(net, path), value) for path, held in wanted.items() for value in _new_heads(held)]
    factors = {new / old for old, new in pairs if old}
    if len(factors) != 1:
        return
    factor = int(factors.pop())
    if backbone["library"] == "transformers":
        config = _multiplied(backbone["config"], factor)
        yield {**backbone, "config": config}
        dims = {value for held in wanted.values() for name, value in held.items() if name == "head_dim"}
        if len(dims) == 1:  # units of a head, which otherwise follow from the width and the number of heads
            yield {**backbone, "config": {**config, "head_dim": dims.pop()}}
        return
    counts = {path.partition(".blocks.")[0]: int(value) for path, held in wanted.items() for value in _new_heads(held)}
    for value in (next(iter(counts.values())), list(counts.values())):
        yield {**backbone, "model_args": {**backbone.get("model_args", {}), "num_heads": value}}


def _new_heads(held: Mapping[str, int | float]) -> list[int | float]:
    """The number of heads among the attributes of a module."""
    return [value for name, value in held.items() if name in KEYS]


def _heads(net: nn.Module, path: str) -> int:
    """The number of heads of an attention module; 0 if it has no such attribute."""
    held = vars(net.get_submodule(path))
    return next((int(held[name]) for name in KEYS if name in held), 0)


def _multiplied(config: dict[str, Any], factor: int) -> dict[str, Any]:
    """A config of transformers with more heads, also in the part for images."""
    out: dict[str, Any] = dict(config)
    if isinstance(out.get("vision_config"), dict):
        out["vision_config"] = _multiplied(out["vision_config"], factor)
    for key in KEYS:
        if isinstance(out.get(key), int):
            out[key] = out[key] * factor
        elif isinstance(out.get(key), list | tuple):
            out[key] = [number * factor for number in out[key]]
    return out

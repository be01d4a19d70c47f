"""The arguments that build an ordinary model with the widths of a merge: libraries know the width of MLPs alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hf_zipit.models.modeling_zipit import build_backbone

Shapes = Mapping[str, Sequence[int]]


def with_widths(backbone: dict[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The description of a model whose tensors have these shapes.

    Args:
        backbone: the description of a model of timm or transformers.
        shapes: name of a tensor -> shape, for all tensors whose shape differs from that in this model.

    Returns:
        The description with another width of its MLPs; unchanged if that does not give these shapes.
    """
    own = _shapes(backbone)
    changed = {name: list(shape) for name, shape in shapes.items() if own.get(name, shape) != list(shape)}
    if not changed:
        return backbone
    wanted = {**own, **changed}
    found = (other for other in _candidates(backbone, own, changed) if _shapes(other) == wanted)
    return next(found, backbone)


def _shapes(backbone: dict[str, Any]) -> dict[str, list[int]]:
    """The shapes of all tensors of a model; none if it cannot be built."""
    try:
        with torch.device("meta"):
            net = build_backbone(backbone, 2)
    except Exception:  # a library fails in many ways with arguments that it does not take
        return {}
    return {name: list(value.shape) for name, value in net.state_dict().items()}


def _candidates(backbone: dict[str, Any], own: Shapes, changed: Shapes) -> Iterator[dict[str, Any]]:
    """Descriptions in which MLPs are as wide as the first tensor that has other outputs, and equal inputs."""
    pairs = ((shape, own[name]) for name, shape in changed.items() if len(shape) == 2)
    width, inputs = next((new for new, old in pairs if new[0] != old[0] and new[1] == old[1]), (0, 0))
    if not width:
        return
    ratio = width / inputs
    ratio = ratio if int(inputs * ratio) == width else (width + 0.5) / inputs  # libraries round it down
    if backbone["library"] == "timm":
        yield {**backbone, "model_args": {**backbone.get("model_args", {}), "mlp_ratio": ratio}}
        return
    for values in ({"intermediate_size": width}, {"mlp_ratio": ratio}):
        yield {**backbone, "config": _replaced(backbone["config"], values)}


def _replaced(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config of transformers with other values of those keys that it has, also in the part for images."""
    out = {key: values.get(key, value) for key, value in config.items()}
    if isinstance(out.get("vision_config"), dict):
        out["vision_config"] = _replaced(out["vision_config"], values)
    return out

"""Whether a model can have more heads of fewer units: found by trying, on a copy with random weights."""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hf_zipit.costs import runs_at
from hf_zipit.heads.modules import Attributes, head_attributes
from hf_zipit.models.modeling_zipit import resize, set_attributes
from hf_zipit.running import logits_of
from hf_zipit.specs.attention import Attention, Part
from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.heads import HeadMatch
from hf_zipit.transform.match import Match
from hf_zipit.transform.permute import randomise
from hf_zipit.transform.transform import merge_states

TOLERANCE = 1e-4  # on float32 outputs of ordinary scale


def truncation(attention: Attention, models: int, units: int) -> HeadMatch:
    """The match that keeps the first units of every head of some equal models."""
    first = torch.eye(attention.units, dtype=torch.float64)[:units]
    maps = first.expand(models, attention.heads, -1, -1)
    factor = (units / attention.units) ** 0.5  # the modules divide by the root of the units
    writes = dict.fromkeys((*attention.pair, attention.value), maps)
    writes |= dict.fromkeys(attention.pair[:1], maps * factor)
    return HeadMatch((attention.values.size,) * models, attention.heads, writes, maps.mT)


def zeroing(attention: Attention, units: int) -> HeadMatch:
    """The match that sets all but the first units of every head of one model to zero."""
    kept = torch.diag((torch.arange(attention.units) < units).double())
    maps = kept.expand(1, attention.heads, -1, -1)
    writes = dict.fromkeys((*attention.pair, attention.value), maps)
    return HeadMatch((attention.values.size,), attention.heads, writes, maps)


def head_matches(
    binding: Binding, heads: Mapping[str, HeadMatch], layers: Sequence[Attention], models: int
) -> dict[str, Match | HeadMatch]:
    """Matches that merge equal models: heads as given by axis, all tables side by side, other spaces unit by unit."""
    matches: dict[str, Match | HeadMatch] = {}
    for name, space in binding.spaces.items():
        matches[name] = Match(torch.arange(space.size).repeat(models), (space.size,) * models, space.size)
    for layer in layers:
        matches |= dict.fromkeys(layer.spaces, heads[layer.axis])
        matches |= {name: table_match(layer.heads, models) for name in layer.tables}
    return matches


def table_match(heads: int, models: int) -> Match:
    """The match of a table with one entry per head: the entries of all models side by side."""
    return Match(torch.arange(models * heads), (heads,) * models, models * heads)


@torch.no_grad()
def random_copy(model: nn.Module) -> nn.Module:
    """A copy of a model with random weights, on the CPU; a model on the meta device is its own copy."""
    if next(model.parameters()).is_meta:
        return model
    return randomise(copy.deepcopy(model).cpu().float().eval(), seed=0)


@torch.no_grad()
def keeps_function(
    net: nn.Module,
    binding: Binding,
    layers: Sequence[Attention],
    size: Sequence[int],
    models: int,
    units: Mapping[str, int],
) -> bool:
    """Whether the model runs as it should with all heads of some copies of itself, each with fewer units.

    Copies whose heads use their first units alone must have the logits of one such copy.

    Args:
        net: the model with random weights; it is not changed.
        binding: its spec.
        layers: attention layers of the model, which are changed together.
        size: channels, height and width of an image.
        models: number of copies.
        units: units of each head afterwards, by group axis.
    """
    attributes: Attributes = {}
    for layer in layers:
        attributes |= head_attributes(net, layer, models * layer.heads, units[layer.axis])
    if next(net.parameters()).is_meta:
        ratios = {name: models * units[x.axis] / x.units for x in layers for name in x.spaces}
        ratios |= {name: float(models) for x in layers for name in x.tables}
        return runs_at(net, binding, ratios, size, attributes)
    pixels = _noise(size)
    state = net.state_dict()
    zeroed = head_matches(binding, {x.axis: zeroing(x, units[x.axis]) for x in layers}, layers, 1)
    wide = head_matches(binding, {x.axis: truncation(x, models, units[x.axis]) for x in layers}, layers, models)
    mine = {name for layer in layers for name in layer.spaces}
    names = [row.parameter for row in binding.table if row.space in mine]
    try:
        wanted = _logits(net, merge_states([state], binding, zeroed, names), {}, pixels)
        found = _logits(net, merge_states([state] * models, binding, wide, names), attributes, pixels)
    except Exception:  # a module fails in many ways with widths that it does not take
        return False
    return _close(found, wanted)


def _noise(size: Sequence[int]) -> Tensor:
    """An image of noise."""
    return torch.randn(1, *size, generator=torch.Generator().manual_seed(0))


def _logits(net: nn.Module, state: Mapping[str, Tensor], attributes: Attributes, pixels: Tensor) -> Tensor:
    """The logits of a copy with other tensors and attributes."""
    out = copy.deepcopy(net)
    for name, value in state.items():
        if value.shape != net.state_dict(keep_vars=True)[name].shape:
            resize(out, name, value.shape)
    set_attributes(out, attributes)
    out.load_state_dict(state, strict=False)
    return logits_of(out(pixels))


@torch.no_grad()
def key_parts(net: nn.Module, layers: Sequence[Attention], size: Sequence[int]) -> set[Part]:
    """Which of the two parts of each attention layer are keys: softmax ignores what is common to all keys.

    Layers that are not like this, or whose queries or keys are those of a single token, have no entry.

    Args:
        net: the model with random weights; it is not changed.
        layers: attention layers of the model.
        size: channels, height and width of an image.
    """
    pixels = _noise(size)
    layers, wanted = _with_tokens(net, layers, pixels)
    for number in (1, 0):
        parts = [layer.pair[number] for layer in layers]
        if _close(_shifted(net, parts, layers, pixels), wanted):
            return set(parts)
    tried = ((part, _shifted(net, [part], [layer], pixels)) for layer in layers for part in layer.pair)
    free = {part for part, found in tried if _close(found, wanted)}
    return {part for layer in layers for part in layer.pair if free.intersection(layer.pair) == {part}}


def _with_tokens(net: nn.Module, layers: Sequence[Attention], pixels: Tensor) -> tuple[list[Attention], Tensor]:
    """Those layers whose queries and keys are those of two tokens or more, and the logits of the model."""
    seen: dict[str, torch.Size] = {}

    def watch(path: str) -> RemovableHandle:
        return net.get_submodule(path).register_forward_hook(lambda _, __, out: seen.update({path: out.shape}))

    with ExitStack() as stack:
        for path in {path for layer in layers for path, _ in layer.pair}:
            stack.callback(watch(path).remove)
        logits = logits_of(net(pixels))
    several = {path for path, shape in seen.items() if len(shape) > 2 and shape[1:-1].numel() > 1}
    return [layer for layer in layers if layer.pair and all(path in several for path, _ in layer.pair)], logits


def _shifted(net: nn.Module, parts: Sequence[Part], layers: Sequence[Attention], pixels: Tensor) -> Tensor:
    """The logits of a copy that adds a constant to all units of some parts."""
    out = copy.deepcopy(net)
    for (path, start), layer in zip(parts, layers, strict=True):
        module = out.get_submodule(path)
        shift = torch.randn(layer.values.size, generator=torch.Generator().manual_seed(1)).to(pixels)

        def add(_: nn.Module, __: object, value: Tensor, shift: Tensor = shift, start: int = start) -> Tensor:
            value = value.clone()
            value[..., start : start + len(shift)] += shift
            return value

        module.register_forward_hook(add)
    return logits_of(out(pixels))


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs agree."""
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))

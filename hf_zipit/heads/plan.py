"""Which attention layers of a merge keep the heads of all models, and how many units each head has."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from hf_zipit.errors import OptionError
from hf_zipit.heads.check import keeps_function, key_parts, random_copy
from hf_zipit.heads.modules import Attributes, head_attributes
from hf_zipit.matching.options import Options
from hf_zipit.specs.attention import Attention, attentions
from hf_zipit.specs.plan import Plan

FULL, PAIR, AUTO = "all-full", "pair", "auto"
_log = logging.getLogger("hf_zipit")


def with_heads(
    plan: Plan, merged: set[str], options: Options, model: nn.Module, size: Sequence[int], models: int
) -> Plan:
    """The plan with the heads of all models kept, if the options say so and the models allow it.

    Args:
        plan: where the trunk ends, and how wide it is.
        merged: the spaces that it merges.
        options: of the merge.
        model: one of the models; it is not changed.
        size: channels, height and width of an image.
        models: number of models.

    Raises:
        OptionError: the options ask for the heads of all models, and these have none that can be kept.
    """
    wanted = options.keeps_heads
    if wanted == PAIR:
        return plan
    layers = [x for x in attentions(plan.binding).values() if merged.issuperset(x.spaces)]
    units = {x.axis: x.units if wanted == FULL else int(options.width * x.units / models + 1e-9) for x in layers}
    found = able(model, plan, layers, size, models, units)
    if options.heads == AUTO or found:
        return _planned(plan, found, model, models, units)
    units = {x.axis: x.units for x in layers}
    found = able(model, plan, layers, size, models, units) if wanted != FULL else []
    if not found:
        raise OptionError(f"heads is '{options.heads}': {_reason(layers)}; use heads pair")
    _log.warning("heads keep all of their units, because these models allow no fewer; --heads pair costs less")
    return _planned(plan, found, model, models, units)


def able(
    model: nn.Module,
    plan: Plan,
    layers: Sequence[Attention],
    size: Sequence[int],
    models: int,
    units: Mapping[str, int],
) -> list[Attention]:
    """Those attention layers that can have the heads of all models, with so many units each.

    Of each kind of layer, the first is tried alone; then all that are left are tried together.
    """
    kinds: dict[object, list[Attention]] = {}
    for layer in layers:
        if 0 < units[layer.axis] <= layer.units and (layer.logits is not None or units[layer.axis] == layer.units):
            kind = type(model.get_submodule(layer.module)), layer.heads, layer.units
            kinds.setdefault(kind, []).append(layer)
    if not kinds:
        return []
    net = random_copy(model)
    alike = [same for same in kinds.values() if keeps_function(net, plan.binding, same[:1], size, models, units)]
    found = [layer for same in alike for layer in same]
    fewer = [layer for layer in found if units[layer.axis] < layer.units]
    if fewer and not next(model.parameters()).is_meta:
        shown = key_parts(net, fewer, size)
        found = [layer for layer in found if layer not in fewer or not shown.isdisjoint(layer.pair)]
    return found if found and keeps_function(net, plan.binding, found, size, models, units) else []


def _planned(plan: Plan, layers: Sequence[Attention], model: nn.Module, models: int, units: Mapping[str, int]) -> Plan:
    """The plan with its widths and attributes for these layers."""
    widths = dict(plan.widths)
    attributes: Attributes = {}
    for layer in layers:
        heads = models * layer.heads
        attributes |= head_attributes(model, layer, heads, units[layer.axis])
        widths |= dict.fromkeys(layer.spaces, heads * units[layer.axis])
        widths |= dict.fromkeys(layer.tables, heads)
    sizes = {name: space.size for name, space in plan.binding.spaces.items()}
    changed = {name: width for name, width in widths.items() if width != sizes[name]}
    return replace(plan, widths=changed, kept={x.axis: units[x.axis] for x in layers}, attributes=attributes)


def _reason(layers: Sequence[Attention]) -> str:
    """Why no heads can be kept."""
    if not layers:
        return "these models have no attention heads that could be kept in the merged layers"
    return f"the module {layers[0].module} runs only with the number of heads that it was built for"

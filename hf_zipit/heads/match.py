"""Matches that keep the heads of all models: maps from statistics, one attention layer after the other."""

import logging
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.layers import find_layers
from hf_zipit.calibration.refit.read_positions import read_positions
from hf_zipit.data.batches import Passes
from hf_zipit.heads.check import key_parts, random_copy, table_match, truncation
from hf_zipit.heads.maps import logit_maps, random_maps, value_maps, value_reads
from hf_zipit.heads.spectrum import logits_kept, values_kept
from hf_zipit.heads.statistics import HeadReading, HeadStatistics
from hf_zipit.running import logits_of, working_copy
from hf_zipit.specs.attention import Attention, attentions
from hf_zipit.specs.plan import Plan
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import along, members

_log = logging.getLogger("hf_zipit")


def match_heads(
    layer: Attention,
    statistics: HeadStatistics,
    written: Sequence[Tensor],
    units: int,
    seed: int | None = None,
) -> dict[str, Match | HeadMatch]:
    """The matches of the spaces of one attention layer, which keep all heads of all models.

    Args:
        layer: the layer.
        statistics: of its heads.
        written: for each head of each model, how it writes into the merged stream, `(u, d)`.
        units: units of each merged head, r.
        seed: for random maps, the control; by default maps are fitted.
    """
    models = len(statistics.queries)
    sizes = (layer.values.size,) * models
    queries = statistics.queries / statistics.counts[0]
    moments = statistics.keys / statistics.counts[1]
    covariance = statistics.outputs.covariance
    written = [value.to(covariance.device) for value in written]
    if seed is None:
        a, b = logit_maps(queries, moments, units)
        maps = value_maps(covariance, written, units)
    else:
        maps = random_maps(len(written), layer.units, units, seed).to(covariance)
        a = b = maps.reshape(models, layer.heads, units, -1) * (layer.units / units) ** 0.5
    score = logits_kept(queries, moments, a, b)
    a = a * (units / layer.units) ** 0.5  # the module divides the logits by the root of the units
    reads = value_reads(covariance, written, maps)
    shaped = [value.reshape(models, layer.heads, *value.shape[1:]).cpu() for value in (maps, reads)]
    writes = {part: (b if part in statistics.key_parts else a).cpu() for part in layer.pair}
    logits = HeadMatch(sizes, layer.heads, writes, score=score)
    score = values_kept(covariance, written, maps)
    values = HeadMatch(sizes, layer.heads, {layer.value: shaped[0]}, shaped[1], score)
    _log.info(
        "%s: %d heads of %d units keep %.1f %% of the logits and %.1f %% of what the heads write",
        *(layer.module, models * layer.heads, units, 100 * logits.score, 100 * values.score),
    )
    return matches_of_layer(layer, models, logits, values)


def matches_of_layer(
    layer: Attention, models: int, logits: HeadMatch, values: HeadMatch
) -> dict[str, Match | HeadMatch]:
    """The matches of the spaces of one attention layer, with its tables."""
    found: dict[str, Match | HeadMatch] = {layer.values.name: values}
    if layer.logits is not None:
        found[layer.logits.name] = logits
    return found | {name: table_match(layer.heads, models) for name in layer.tables}


def read_row(layer: Attention, binding: Binding) -> Row:
    """The row of the weight that reads the outputs of the heads."""
    return next(row for row in binding.table if row.space == layer.values.name and row.role == "read")


def written_by_heads(
    layer: Attention, row: Row, states: Sequence[Mapping[str, Tensor]], binding: Binding, matches: Matches
) -> list[Tensor]:
    """How each head of each model writes into the merged stream, one `(u, d)` for each.

    Args:
        layer: the attention layer.
        row: of the weight that reads its heads.
        states: state dicts of the models.
        binding: the spec.
        matches: of the stream that the layer writes.
    """
    writes = [other for other in binding.rows([row.parameter])[row.parameter] if other.role != "read"]
    out: list[Tensor] = []
    weights = [state[row.parameter].double() for state in states]
    counts = torch.stack([members(writes, matches, k, len(w), len(weights)) for k, w in enumerate(weights)]).sum(0)
    for model, weight in enumerate(weights):
        mine = along(weight, 0, writes, matches, model) / counts.to(weight).clamp(min=1)[:, None]  # (d, H * u)
        out.extend(torch.split(mine.T, layer.units))
    return out


def read_tokens(model: nn.Module, readers: Mapping[str, str], passes: Passes) -> dict[str, Tensor]:
    """Group axis -> the tokens of a layer that anything later reads, `(P,)`, where these are not all.

    Args:
        model: in eval mode, on the device of the passes.
        readers: group axis -> the module that reads the outputs of the heads.
        passes: over the images, of which the first and the last are looked at.
    """
    first, last = passes.images[0], passes.images[-1]
    like = next(model.parameters())
    images = [pixels[None].to(like.device, like.dtype) for pixels in (first[0], last[len(last) - 1])]
    groups = find_layers(model, [lambda value: logits_of(model(value))], images[0])
    axes = {path: axis for axis, path in readers.items()}
    layers = [layer for group in groups for layer in group.layers if layer.maps[0].module in axes]
    (found,) = read_positions(model, [model], [layers], images)
    return {axes[layer.maps[0].module]: mask.any(1) for layer, mask in found.items()}


def reading(
    plan: Plan, model: nn.Module, size: Sequence[int], passes: Passes, known: Collection[str]
) -> HeadReading | None:
    """What must be read of the images to match the heads that a plan keeps; `None` if nothing more.

    Args:
        plan: which attention layers these are, and the units of their heads. Heads that keep all units need no images.
        model: one of the models; it is not changed.
        size: channels, height and width of an image.
        passes: over the images.
        known: group axes whose statistics are known.
    """
    layers = [layer for layer in _fitted(plan) if layer.axis not in known]
    if not layers:
        return None
    keys = key_parts(random_copy(model), layers, size)
    readers = {x.axis: read_row(x, plan.binding).parameter.rpartition(".")[0] for x in layers}
    read = read_tokens(working_copy(model, passes.device), readers, passes)
    return HeadReading(layers, keys, readers, read)


def matches_of_heads(
    plan: Plan,
    states: Sequence[Mapping[str, Tensor]],
    statistics: Mapping[str, HeadStatistics],
    matches: Matches,
    seed: int | None = None,
) -> dict[str, Match | HeadMatch]:
    """The matches of all spaces of the attention layers whose heads a plan keeps.

    Args:
        plan: which layers these are, and the units of their heads.
        states: state dicts of the models.
        statistics: of the layers whose heads get fewer units, by group axis.
        matches: of the other spaces.
        seed: for random maps, the control; by default maps are fitted.
    """
    found: dict[str, Match | HeadMatch] = {}
    for layer in _kept(plan):
        whole = truncation(layer, len(states), layer.units)
        found |= matches_of_layer(layer, len(states), whole, whole)
    for layer in _fitted(plan):
        mine = statistics[layer.axis]
        written = written_by_heads(layer, read_row(layer, plan.binding), states, plan.binding, matches)
        found |= match_heads(layer, mine, written, plan.kept[layer.axis], seed)
    return found


def _kept(plan: Plan) -> list[Attention]:
    """The attention layers of which a plan keeps the heads of all models."""
    return [layer for axis, layer in attentions(plan.binding).items() if axis in plan.kept]


def _fitted(plan: Plan) -> list[Attention]:
    """Those of them whose heads get fewer units."""
    return [layer for layer in _kept(plan) if plan.kept[layer.axis] < layer.units]

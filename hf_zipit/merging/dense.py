"""Merges with dense matches: which spaces allow them, and batch norms that they leave as they should be.

A dense match mixes units, whose scales then matter. So every batch norm behind a layer is folded into the layer before
the merge, up to its shift, and the merged norm gets the deviations that the merged units should have.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.assembly.parents import Merged, Parents
from hf_zipit.calibration.refit.layers import find_layers
from hf_zipit.errors import OptionError
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.specs.plan import Plan
from hf_zipit.specs.spaces import FeatureSpace, Row
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.heads import Matches, deviations
from hf_zipit.transform.transform import merge_states

_log = logging.getLogger("hf_zipit")
Norms = Mapping[str, str]  # path of a batch norm -> that of the layer that it follows
State = Mapping[str, Tensor]


def check_dense(parents: Parents, plan: Plan, recipe: Recipe) -> None:
    """Refuse a dense method where it can do nothing, as far as that is known before any image is read.

    Raises:
        OptionError: the calibration does not go with dense matches, or no space of the models allows them.
    """
    if recipe.calibrate in ("repair", "repair-weights"):
        raise OptionError(
            f"calibrate is '{recipe.calibrate}', which scales units of the parents, and method '{recipe.method}' makes "
            "combinations of them: use batchnorm or refit"
        )
    if not any(_free(space, parents, plan) for space in _spaces(parents, plan)):
        raise _nothing_dense(recipe.method)


@torch.no_grad()
def dense_spaces(parents: Parents, plan: Plan, names: Iterable[str], method: str) -> list[FeatureSpace]:
    """The spaces of a merge that allow dense matches; the others are matched one-to-one.

    Such a space has no groups, is under no layer norm, and is not gathered by heads. Nothing multiplies its units one
    by one but batch norms that follow a layer directly.

    Args:
        parents: the models.
        plan: of the merge.
        names: of the spaces to choose from.
        method: for messages.

    Raises:
        OptionError: no space allows them.
    """
    norms = norms_behind_layers(parents)
    spaces = [space for space in _spaces(parents, plan) if space.name in set(names)]
    found = [space for space in spaces if _free(space, parents, plan) and _only_norms(space, parents, norms)]
    if not found:
        raise _nothing_dense(method)
    if len(found) < len(spaces):
        said = "%s: %d of %d spaces allow a dense match; the others are matched one-to-one, as by permute"
        _log.info(said, method, len(found), len(spaces))
    return found


def norms_behind_layers(parents: Parents) -> Norms:
    """The batch norms that follow a layer directly in the models, found on an image of noise."""
    model = parents.sources[0].model
    pixels = torch.randn(1, *parents.input_size, generator=torch.Generator().manual_seed(0))
    value = pixels.to(next(model.parameters()))
    groups = find_layers(model, [lambda value: logits_of(model(value))], value)
    maps = [one for group in groups for layer in group.layers for one in layer.maps]
    return {one.norm: one.module for one in maps if one.norm is not None and not one.norm_only}


@torch.no_grad()
def assembled(parents: Parents, tasks: Sequence[str], plan: Plan, matches: Matches, about: dict[str, Any]) -> Merged:
    """The merged model, before calibration; see `Parents.assemble`."""
    dense = {name for name, match in matches.items() if isinstance(match, DenseMatch)}
    if not dense:
        return parents.assemble(tasks, plan, matches, about)
    rows = parents.binding.rows(plan.touched(parents.states[0]))
    norms = {
        norm: layer
        for norm, layer in norms_behind_layers(parents).items()
        if dense & {row.space for row in rows.get(f"{norm}.weight", ())}
    }
    eps = {norm: _norm(parents.sources[0].model, norm).eps for norm in norms}
    folded = parents.with_trunks([_folded(state, norms, eps) for state in parents.states])
    merged = folded.assemble(tasks, plan, matches, about)
    weights = [f"{norm}.weight" for norm in norms]
    for name, value in merge_states(folded.states, parents.binding, deviations(matches), weights).items():
        norm = _norm(merged, f"trunk.{name.removesuffix('.weight')}")
        norm.get_parameter("weight").copy_(value)
        norm.get_buffer("running_var").copy_((value.double().square() - norm.eps).clamp(min=0))
    return merged


def _folded(state: State, norms: Norms, eps: Mapping[str, float]) -> dict[str, Tensor]:
    """The tensors with which these layers and norms do the same, and every norm only shifts.

    The norm's weight is the deviation of its output, and its variance that of its input, both with the same rounding
    term.
    """
    out = {}
    for norm, layer in norms.items():
        variance = state[f"{norm}.running_var"].double()
        slope = state[f"{norm}.weight"].double() / (variance + eps[norm]).sqrt()
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in state:
                out[name] = state[name].double() * slope.view(-1, *[1] * (state[name].ndim - 1))
        out[f"{norm}.running_mean"] = state[f"{norm}.running_mean"].double() * slope
        out[f"{norm}.running_var"] = variance * slope.square()
        out[f"{norm}.weight"] = (out[f"{norm}.running_var"] + eps[norm]).sqrt()
    return {name: value.to(state[name].dtype) for name, value in out.items()}


def _norm(net: nn.Module, path: str) -> nn.modules.batchnorm._BatchNorm:
    """The batch norm at a path."""
    norm = net.get_submodule(path)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    return norm


def _spaces(parents: Parents, plan: Plan) -> list[FeatureSpace]:
    """The spaces that a plan merges, but those of kept attention heads."""
    names = parents.spaces(plan)
    spaces = parents.binding.spaces.values()
    return [space for space in spaces if space.name in names and space.group_axis not in plan.kept]


def _free(space: FeatureSpace, parents: Parents, plan: Plan) -> bool:
    """Whether units of a space may be mixed: they are observed, and nothing moves or counts them one by one."""
    alone = space.groups == 1 and space.group_axis is None and not space.one_to_one
    return alone and bool(space.probes) and space.name not in parents.gathered_spaces(plan)


def _only_norms(space: FeatureSpace, parents: Parents, norms: Norms) -> bool:
    """Whether nothing carries a space but batch norms behind a layer."""
    mine = [row for row in parents.binding.table if row.space == space.name and row.role == "carry"]
    return all(_module(row) in norms for row in mine)


def _module(row: Row) -> str:
    return row.parameter.rpartition(".")[0]


def _nothing_dense(method: str) -> OptionError:
    return OptionError(
        f"method is '{method}', but no feature space of these models allows a dense match: all are under a layer norm, "
        "in groups, scaled unit by unit, or gathered by heads; use permute"
    )

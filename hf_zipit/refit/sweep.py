"""The refit: layer by layer along the chain, each towards the parents on the merged model's own inputs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.assembly import Plan
from hf_zipit.batching import Passes
from hf_zipit.chain import logits_of, working_copy
from hf_zipit.matching.match import Match
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.refit.fold import Folded
from hf_zipit.refit.layers import Group, Layer, find_layers
from hf_zipit.refit.normal import NormalEquations
from hf_zipit.refit.observe import Observer
from hf_zipit.refit.replay import Replay, Track
from hf_zipit.refit.targets import Target, identity, trunk_target
from hf_zipit.source import Source
from hf_zipit.steps import run_steps

_log = logging.getLogger("hf_zipit")
Stage = Callable[[Tensor], Tensor]

HELD_OUT = 10  # every tenth image of each data set is not fitted, but decides
INPUTS = 9216  # a layer that reads more is left as it is: its normal equations would take gigabytes
OUTPUTS = 256  # at most so many outputs of a layer choose its ridge
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)  # of the mean second moment of an input


@torch.no_grad()
def refit(
    model: ZipItPreTrainedModel,
    parents: Sequence[Source],
    plan: Plan,
    matches: Mapping[str, Match],
    passes: Passes,
    *,
    trunk: bool = True,
    per_task: bool = False,
    judges: Sequence[nn.Module] = (),
) -> None:
    """Refit the layers of a merged model by ridge regression, in running order, trunk first and then the heads.

    Every layer is fitted on what it reads in the merged model, as refit so far, so that it makes up for the errors
    before it. A layer of the trunk aims at the parents' outputs, merged as its units are (where it writes a residual
    stream: at the merged stream, so it adds what the stream still lacks); a layer of head k at parent k's outputs on
    the images of task k. The ridge pulls towards the zipped weights, and a layer whose error on the held-out
    images would grow keeps them.

    Args:
        model: the merged model, changed in place when all is done.
        parents: its sources; they are not changed.
        plan, matches: how it was merged.
        passes: the images.
        trunk: refit the trunk as well as the heads.
        per_task: on the images of task k a unit aims at the units of parent k alone, where it has any.
        judges: a second network for each task: its head aims at the mean of this one's outputs and its parent's.
            Only without `trunk`.
    """
    copies = [working_copy(parent.model, passes.device) for parent in parents]
    merged: Any = working_copy(model, passes.device)
    config = model.config
    pixel = passes.images[0][0][None].to(passes.device, next(merged.parameters()).dtype)
    size = pixel.shape[-2:]
    stages = _stages(merged.trunk, config.trunk or [], size)
    tracks = [Track(merged.trunk, stages), *(Track(net, _stages(net, plan.trunk, size)) for net in (*copies, *judges))]
    replay = Replay(tracks, passes, [width * len(tracks) for width in _sizes(stages, pixel)])
    for group in find_layers(merged.trunk, stages, pixel) if trunk else []:
        _fit(replay, group, {layer: _target(plan, matches, copies, layer, per_task) for layer in group.layers})
    chains = isinstance(model, ZipItForImageClassification)  # what surrounds backbones is none, and is left as it is
    for task, head in enumerate(merged.heads if chains else ()):
        own = (*stages, *_stages(head, config.head or [], size, merged.unmerge[task]))
        places = [1 + task, *([1 + len(copies) + task] if judges else [])]
        nets = [tracks[place].net for place in places]
        heads = [Track(head, own), *(Track(net, _stages(net, plan.binding.steps, size)) for net in nets)]
        fork = replay.fork([0, *places], heads, [len(heads) * width for width in _sizes(own, pixel)])
        for group in find_layers(head, own, pixel):
            _fit(fork, group, {layer: identity(nets, layer) for layer in group.layers}, task)
    model.load_state_dict(merged.state_dict())


def _stages(
    net: nn.Module, steps: Sequence[str], size: Sequence[int], before: nn.Module | None = None
) -> tuple[Stage, ...]:
    """The steps of a network as functions; a network without steps is one. `before` runs ahead of the first."""
    runs: list[Stage] = [partial(run_steps, net, [step], size=size) for step in steps]
    if before is not None:
        first, unmerge = runs[0], before
        runs[0] = lambda value: first(unmerge(value))
    return tuple(runs) or (lambda value: logits_of(net(value)),)


def _sizes(stages: Sequence[Stage], value: Tensor) -> list[int]:
    """Bytes per image of what enters each stage."""
    sizes = []
    for stage in stages:
        sizes.append(value.nbytes)
        value = stage(value)
    return sizes


def _target(
    plan: Plan, matches: Mapping[str, Match], nets: Sequence[nn.Module], layer: Layer, per_task: bool
) -> Target:
    name = layer.parts[0].module
    widths = [int(net.get_parameter(f"{name}.weight").shape[0]) for net in nets]
    return trunk_target(plan.binding, matches, f"{name}.weight", widths, per_task)


def _fit(replay: Replay, group: Group, targets: Mapping[Layer, Target], task: int | None = None) -> None:
    """Refit the layers of a group in one pass, on the images of one task or of all."""
    net, device = replay.tracks[0].net, replay.passes.device
    folded = {layer: Folded(net, layer) for layer in group.layers}
    for layer in [layer for layer, found in folded.items() if found.weight.shape[2] > INPUTS]:
        _log.info("%s reads more than %d inputs: it is not refit", layer.parts[0].module, INPUTS)
        del folded[layer]
    if not folded:
        return
    group = replace(group, layers=tuple(folded))
    shapes = {layer: (f.groups, f.weight.shape[2], f.weight.shape[1]) for layer, f in folded.items()}
    fits = {layer: NormalEquations.empty(*shape, device) for layer, shape in shapes.items()}
    tests = {layer: NormalEquations.empty(*shape, device) for layer, shape in shapes.items()}
    single = len(replay.passes.images) == 1
    for batch in replay.batches(group.first, f"Refitting {group.layers[0].parts[0].module}"):
        seen = [
            _observe(track, group, value, inputs=track is replay.tracks[0])
            for track, value in zip(replay.tracks, batch.values, strict=True)
        ]
        held = batch.number % HELD_OUT == 0
        mine = torch.ones_like(held) if task is None or single else batch.task == task
        for layer in group.layers:
            x = seen[0].inputs[layer]  # (B, P, G, d)
            e = targets[layer]([other.sites[layer] for other in seen[1:]], batch.task) - seen[0].sites[layer]
            e = e.reshape(*e.shape[:2], folded[layer].groups, -1)  # (B, P, G, m)
            fits[layer].update(x[mine & ~held].flatten(0, 1), e[mine & ~held].flatten(0, 1))
            tests[layer].update(x[mine & held].flatten(0, 1), e[mine & held].flatten(0, 1))
    for layer in group.layers:
        fits[layer].reduce(replay.passes.accelerator)
        tests[layer].reduce(replay.passes.accelerator)
        choose(folded[layer], fits[layer], tests[layer])


def _observe(track: Track, group: Group, value: Tensor, inputs: bool) -> Observer:
    seen = Observer(track.net, group.layers, inputs)
    with seen:
        for stage in track.stages[group.first : group.last + 1]:
            value = stage(value)
    return seen


def choose(folded: Folded, fit: NormalEquations, test: NormalEquations) -> None:
    """Give a layer the weights that do best on the held-out images; the zipped ones where nothing does better.

    The ridge, and whether it pulls towards the zipped weights as they are or with renewed batch norms, is chosen on
    some of the outputs.
    """
    if not fit.count or not test.count:
        return
    priors = [torch.zeros_like(folded.weight)]
    if folded.normed:
        priors.append(folded.reset(fit) - folded.weight)
    some = slice(None, None, -(-folded.weight.shape[1] // OUTPUTS))
    few, trial = fit.of(some), test.of(some)
    scores = {}
    for ridge in RIDGES:
        for i, prior in enumerate(priors):
            scores[ridge, i] = float(trial.error(*few.solve(ridge, prior[:, some], folded.intercept)).sum())
    ridge, i = min(scores, key=lambda key: scores[key])
    change, shift = fit.solve(ridge, priors[i], folded.intercept)
    if test.error(change, shift).sum() < test.error().sum():
        folded.write(change, shift, fit + test)

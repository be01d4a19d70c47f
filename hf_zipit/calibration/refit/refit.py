"""The refit: layer by layer along the chain, each towards the parents on the merged model's own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.assembly.plan import Plan
from hf_zipit.calibration.refit.affine import Folded, FoldedNorm, Regression, fold
from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.layers import Group, Layer, find_layers
from hf_zipit.calibration.refit.normal_equations import NormalEquations
from hf_zipit.calibration.refit.observe import Observer
from hf_zipit.calibration.refit.replay import Replay, Track
from hf_zipit.calibration.refit.targets import Target, identity, trunk_target
from hf_zipit.calibration.refit.tracks import merged_parts, network_of, parent_parts
from hf_zipit.data.batches import Passes
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import working_copy
from hf_zipit.sources.source import Source
from hf_zipit.transform.match import Match

HELD_OUT = 10  # every tenth image of each data set is not fitted, but decides
INPUTS = 9216  # of a layer that reads more, or more than there are samples, the samples are kept instead of equations
NUMBERS = 2**27  # of them so many at most: every second, third, ... ten images are read where there are more
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
    stream: at the merged stream, so it adds what the stream still lacks); a layer of a head at its own parent's
    outputs, on that parent's images. The ridge pulls towards the zipped weights, and a layer whose error on the
    held-out images would grow keeps them.

    Args:
        model: the merged model, changed in place when all is done.
        parents: its sources; they are not changed.
        plan, matches: how it was merged.
        passes: the images.
        trunk: refit the trunk as well as the heads.
        per_task: on the images of parent k a unit aims at the units of parent k alone, where it has any.
        judges: a second network for each parent: a head aims at the mean of this one's outputs and its parent's.
            Only without `trunk`.
    """
    copies = [working_copy(network_of(parent), passes.device) for parent in parents]
    merged = working_copy(model, passes.device)
    pixel = passes.images[0][0][None].to(passes.device, next(merged.parameters()).dtype)
    size, count = pixel.shape[-2:], len(parents)
    mine = merged_parts(merged, size)
    theirs = [parent_parts(p, net, plan, size) for p, net in zip([*parents] * 2, [*copies, *judges], strict=False)]
    tracks = [mine.trunk, *(parts.trunk for parts in theirs)]
    replay = Replay(tracks, passes, [width * len(tracks) for width in _sizes(mine.trunk, pixel)])
    nets = [track.net for track in tracks[1 : count + 1]]
    for group in find_layers(mine.trunk.net, mine.trunk.stages, pixel) if trunk else []:
        _fit(replay, group, {layer: _target(plan, matches, nets, layer, per_task) for layer in group.layers})
    owners = [(k, number) for k, parts in enumerate(theirs[:count]) for number in range(len(parts.heads))]
    for head, (k, number) in zip(mine.heads, owners, strict=False):  # a whole network has no heads
        places = range(k, len(theirs), count)
        heads = [head, *(theirs[place].heads[number] for place in places)]
        sizes = [len(heads) * width for width in _sizes(head, pixel)]
        fork = Replay(heads, passes, sizes)
        if len(head.stages) > len(mine.trunk.stages):  # it goes on where the trunk ends
            fork = replay.fork([0, *(1 + place for place in places)], heads, sizes)
        for group in find_layers(head.net, head.stages, pixel):
            _fit(fork, group, {layer: identity([h.net for h in heads[1:]], layer) for layer in group.layers}, k)
    model.load_state_dict(merged.state_dict())


def _sizes(track: Track, value: Tensor) -> list[int]:
    """Bytes per image of what enters each stage."""
    sizes = []
    for stage in track.stages:
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
    """Refit the layers of a group in one pass, on the images of one data set or of all."""
    net, device = replay.tracks[0].net, replay.passes.device
    folded = {layer: fold(net, layer) for layer in group.layers}
    single = len(replay.passes.images) == 1
    images = sum(len(p) for k, p in enumerate(replay.passes.images) if task is None or single or k == task)
    kinds = {layer: _kind(replay, group, layer, found.weight, images) for layer, found in folded.items()}
    shapes = {layer: (f.groups, f.weight.shape[2], f.weight.shape[1]) for layer, f in folded.items()}
    fits = {layer: kinds[layer][0].empty(*shape, device) for layer, shape in shapes.items()}
    tests = {layer: kinds[layer][0].empty(*shape, device) for layer, shape in shapes.items()}
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
            read = mine & (batch.number // HELD_OUT % kinds[layer][1] == 0)
            fits[layer].update(x[read & ~held].flatten(0, 1), e[read & ~held].flatten(0, 1))
            tests[layer].update(x[read & held].flatten(0, 1), e[read & held].flatten(0, 1))
    for layer in group.layers:
        fits[layer].reduce(replay.passes.accelerator)
        tests[layer].reduce(replay.passes.accelerator)
        choose(folded[layer], fits[layer], tests[layer])


def _kind(
    replay: Replay, group: Group, layer: Layer, weight: Tensor, images: int
) -> tuple[type[NormalEquations] | type[Samples], int]:
    """How a layer's regression is kept, and of how many times ten images ten are read."""
    inputs, outputs = weight.shape[2], weight.shape[1]
    if inputs <= min(images, INPUTS):
        return NormalEquations, 1
    track, first = replay.tracks[0], replay.passes.images[0][0][None]
    value = first.to(replay.passes.device, next(track.net.parameters()).dtype)
    for stage in track.stages[: group.first]:
        value = stage(value)
    samples = images * _observe(track, group, value, inputs=False).sites[layer].shape[1]
    if samples >= inputs and inputs <= INPUTS:
        return NormalEquations, 1
    return Samples, -(-samples // min(INPUTS, NUMBERS // (len(weight) * (inputs + outputs))))


def _observe(track: Track, group: Group, value: Tensor, inputs: bool) -> Observer:
    seen = Observer(track.net, group.layers, inputs)
    with seen:
        for stage in track.stages[group.first : group.last + 1]:
            value = stage(value)
    return seen


def choose(folded: Folded | FoldedNorm, fit: Regression, test: Regression) -> None:
    """Give a layer the weights that do best on the held-out images; the zipped ones where nothing does better.

    The ridge, and whether it pulls towards the zipped weights as they are or with renewed batch norms, is chosen on
    some of the outputs.
    """
    if not fit.count or not test.count:
        return
    priors: list[Tensor | None] = [None]
    if folded.normed:
        priors.append(folded.reset(fit) - folded.weight)
    some = slice(None, None, -(-folded.weight.shape[1] // OUTPUTS))
    few, trial = fit.of(some), test.of(some)
    scores = {}
    for ridge in RIDGES:
        for i, prior in enumerate(priors):
            solved = few.solve(ridge, None if prior is None else prior[:, some], folded.intercept)
            scores[ridge, i] = float(trial.error(*solved).sum())
    ridge, i = min(scores, key=lambda key: scores[key])
    change, shift = fit.solve(ridge, priors[i], folded.intercept)
    if test.error(change, shift).sum() < test.error().sum():
        folded.write(change, shift, fit + test)  # type: ignore[operator]  # both are of one kind

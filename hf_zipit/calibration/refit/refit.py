"""The refit: layer by layer, each fitted to the parents' outputs on the merged model's own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.affine import FoldedLayer, FoldedNorm, Regression, fold_layer
from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.held_out import Draw
from hf_zipit.calibration.refit.layers import Layer, LayerGroup, find_layers
from hf_zipit.calibration.refit.logits import Target, centre_logits
from hf_zipit.calibration.refit.normal_equations import NormalEquations
from hf_zipit.calibration.refit.observe import LayerObserver
from hf_zipit.calibration.refit.replay import Replay, Track
from hf_zipit.calibration.refit.targets import identity, trunk_target
from hf_zipit.calibration.refit.tracks import merged_tracks, network_of, parent_tracks
from hf_zipit.running import working_copy

INPUTS = 9216  # layers with more inputs than this, or than samples, are solved in the dual
NUMBERS = 2**27  # upper limit on the numbers stored for the dual; beyond it only one block of ten images in k is read
OUTPUTS = 256  # upper limit on the outputs of a layer that choose its ridge
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)  # as multiples of the mean second moment of an input


@torch.no_grad()
def refit(
    merge: MergeState,
    *,
    trunk: bool = True,
    per_task: bool = False,
    extra_teachers: Sequence[nn.Module] = (),
) -> None:
    """Refit the layers of a merged model by ridge regression, in running order: first the trunk, then the heads.

    Every layer is fitted on what it reads in the merged model as refitted so far, so it corrects for the errors of the
    layers before it. The target of a layer of the trunk is the parents' outputs, merged as its units are. Where the
    layer writes a residual stream, the target is the merged stream, so the layer adds what the stream still lacks. The
    target of a layer of a head is the output of its own parent, on that parent's images; of the logits of a task with
    one class of several, what softmax reads of them. The ridge pulls towards the
    merged weights. A layer whose error on the held-out images would grow keeps them. A tenth of the images of each data
    set is held out, drawn by the seed of the merge.

    Args:
        merge: the merge. Its model is changed in place after the last layer is fitted.
        trunk: whether to refit the trunk as well as the heads.
        per_task: on the images of task k, fit every unit to its members from parent k alone, if it has any.
        extra_teachers: a second network for each parent. Heads are fitted to the mean of its outputs and the parent's.
            Only used with `trunk=False`.
    """
    parents, plan, passes = merge.parents, merge.plan, merge.passes
    count = len(parents)
    draw = Draw([len(images) for images in passes.images], merge.seed)
    copies = [working_copy(network_of(parent), passes.device) for parent in parents]
    merged = working_copy(merge.model, passes.device)
    pixel = passes.images[0][0][None].to(passes.device, next(merged.parameters()).dtype)
    size = pixel.shape[-2:]
    mine = merged_tracks(merged, size)
    teachers = zip([*parents] * 2, [*copies, *extra_teachers], strict=False)
    theirs = [parent_tracks(parent, net, plan, size) for parent, net in teachers]

    trunks = [mine.trunk, *(tracks.trunk for tracks in theirs)]
    replay = Replay(trunks, passes, [width * len(trunks) for width in _sizes(mine.trunk, pixel)])
    nets = [track.net for track in trunks[1 : count + 1]]
    branches = [branch for parent in parents for branch in parent.parts]
    for group in find_layers(mine.trunk.net, mine.trunk.stages, pixel) if trunk else []:
        targets: dict[Layer, Target] = {layer: _target(merge, nets, layer, per_task) for layer in group.layers}
        _fit(replay, draw, group, centre_logits(mine.trunk.net, targets, plan.binding, branches))

    owners = [(k, number) for k, tracks in enumerate(theirs[:count]) for number in range(len(tracks.heads))]
    for head, (k, number) in zip(mine.heads, owners, strict=False):  # a network that is merged whole has no heads
        teaching = range(k, len(theirs), count)  # parent k, and its extra teacher
        heads = [head, *(theirs[i].heads[number] for i in teaching)]
        sizes = [len(heads) * width for width in _sizes(head, pixel)]
        head_replay = Replay(heads, passes, sizes)
        if len(head.stages) > len(mine.trunk.stages):  # the head continues where the trunk ends
            head_replay = replay.fork([0, *(1 + i for i in teaching)], heads, sizes)
        for group in find_layers(head.net, head.stages, pixel):
            targets = {layer: identity([h.net for h in heads[1:]], layer) for layer in group.layers}
            branch = parents[k].parts[number]
            _fit(head_replay, draw, group, centre_logits(head.net, targets, plan.binding, [branch]), k)
    merge.model.load_state_dict(merged.state_dict())


def _sizes(track: Track, value: Tensor) -> list[int]:
    """Bytes per image of what enters each stage."""
    sizes = []
    for stage in track.stages:
        sizes.append(value.nbytes)
        value = stage(value)
    return sizes


def _target(merge: MergeState, nets: Sequence[nn.Module], layer: Layer, per_task: bool) -> AnyTarget:
    """The target of a layer of the trunk; `nets` are the parents."""
    name = f"{layer.maps[0].module}.weight"
    widths = [int(net.get_parameter(name).shape[0]) for net in nets]
    return trunk_target(merge.plan.binding, merge.matches, name, widths, per_task)


def _fit(
    replay: Replay, draw: Draw, group: LayerGroup, targets: Mapping[Layer, Target], task: int | None = None
) -> None:
    """Refit the layers of a group in one pass.

    Args:
        replay: the merged network first, then those that teach it.
        draw: which images are held out.
        group: the layers.
        targets: what each is fitted to.
        task: the task whose images are read; `None` reads all. A single data set is read in any case.
    """
    net, device = replay.tracks[0].net, replay.passes.device
    folded = {layer: fold_layer(net, layer) for layer in group.layers}
    single = len(replay.passes.images) == 1
    images = sum(len(p) for k, p in enumerate(replay.passes.images) if task is None or single or k == task)
    kinds = {layer: _kind(replay, group, layer, found.weight, images) for layer, found in folded.items()}
    shapes = {layer: (f.groups, f.weight.shape[2], f.weight.shape[1]) for layer, f in folded.items()}
    fits = {layer: kinds[layer][0].empty(*shape, device) for layer, shape in shapes.items()}
    tests = {layer: kinds[layer][0].empty(*shape, device) for layer, shape in shapes.items()}
    for batch in replay.batches(group.first, f"Refitting {group.layers[0].maps[0].module}"):
        seen = [
            _observe(track, group, value, inputs=track is replay.tracks[0])
            for track, value in zip(replay.tracks, batch.values, strict=True)
        ]
        held = draw.held(batch.task, batch.number)
        mine = torch.ones_like(held) if task is None or single else batch.task == task
        for layer in group.layers:
            x = seen[0].inputs[layer]  # (B, P, G, d)
            taught = targets[layer]([other.results[layer] for other in seen[1:]], batch.task)
            e = taught - seen[0].results[layer]
            e = e.reshape(*e.shape[:2], folded[layer].groups, -1)  # (B, P, G, m)
            read = mine & draw.read(batch.task, batch.number, kinds[layer][1])
            fits[layer].update(x[read & ~held].flatten(0, 1), e[read & ~held].flatten(0, 1))
            tests[layer].update(x[read & held].flatten(0, 1), e[read & held].flatten(0, 1))
    for layer in group.layers:
        fits[layer].reduce(replay.passes.accelerator)
        tests[layer].reduce(replay.passes.accelerator)
        choose(folded[layer], fits[layer], tests[layer])


def _kind(
    replay: Replay, group: LayerGroup, layer: Layer, weight: Tensor, images: int
) -> tuple[type[NormalEquations] | type[Samples], int]:
    """The accumulator for a layer, and k: one block of ten images in k is read.

    Args:
        replay: the merged network first.
        group: the group of the layer.
        layer: the layer.
        weight: its folded weight, `(G, m, d)`.
        images: how many images there are to fit it.
    """
    inputs, outputs = weight.shape[2], weight.shape[1]
    if inputs <= min(images, INPUTS):
        return NormalEquations, 1
    track = replay.tracks[0]
    value = replay.passes.images[0][0][None].to(replay.passes.device, next(track.net.parameters()).dtype)
    for stage in track.stages[: group.first]:
        value = stage(value)
    samples = images * _observe(track, group, value, inputs=False).results[layer].shape[1]
    if samples >= inputs and inputs <= INPUTS:
        return NormalEquations, 1
    return Samples, -(-samples // min(INPUTS, NUMBERS // (len(weight) * (inputs + outputs))))


def _observe(track: Track, group: LayerGroup, value: Tensor, inputs: bool) -> LayerObserver:
    """Run the stages of a group on what enters the first, and return what its layers read and put out."""
    seen = LayerObserver(track.net, group.layers, images=len(value), inputs=inputs)
    with seen:
        for stage in track.stages[group.first : group.last + 1]:
            value = stage(value)
    return seen


def choose(folded: FoldedLayer | FoldedNorm, fit: Regression, test: Regression) -> None:
    """Give a layer the weights with the smallest error on the held-out images, if that is below the merged weights'.

    What is chosen is the ridge, and whether it pulls towards the merged weights as they are or with batch norms
    re-estimated. Of wide layers only some outputs take part in this choice.

    Args:
        folded: the layer, changed in place.
        fit: the regression of the fitted images.
        test: that of the held-out images.
    """
    if not fit.count or not test.count:
        return
    priors: list[Tensor | None] = [None]
    if folded.normed:
        priors.append(folded.reset(fit) - folded.weight)
    some = slice(None, None, -(-folded.weight.shape[1] // OUTPUTS))
    few = fit.of(some)
    trial = test.of(some)
    scores = {}
    for ridge in RIDGES:
        for i, prior in enumerate(priors):
            solved = few.solve(ridge, None if prior is None else prior[:, some], folded.intercept)
            scores[ridge, i] = float(trial.error(*solved).sum())
    ridge, i = min(scores, key=lambda key: scores[key])
    change, shift = fit.solve(ridge, priors[i], folded.intercept)
    if test.error(change, shift).sum() < test.error().sum():
        folded.write(change, shift, fit + test)  # type: ignore[operator]  # both are of one kind

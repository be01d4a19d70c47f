"""The refit: layer by layer, each fitted to the parents' outputs on the merged model's own inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.fit import fit_layers
from hf_zipit.calibration.refit.held_out import Draw
from hf_zipit.calibration.refit.layers import Layer, LayerGroup, find_layers
from hf_zipit.calibration.refit.logits import Target, centre_logits
from hf_zipit.calibration.refit.read_positions import read_positions
from hf_zipit.calibration.refit.replay import Replay, Track
from hf_zipit.calibration.refit.targets import identity, trunk_target
from hf_zipit.calibration.refit.tracks import merged_tracks, network_of, parent_tracks
from hf_zipit.running import working_copy
from hf_zipit.sources.source import Branch


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
    one class of several, what softmax reads of them. Only positions that the network reads count, of the last layer of
    a ViT often the class token. The ridge pulls towards the merged weights. A layer whose error on the held-out images
    would grow keeps them. A tenth of the images of each data set is held out, drawn by the seed of the merge.

    Args:
        merge: the merge. Its model is changed in place after the last layer is fitted.
        trunk: whether to refit the trunk as well as the heads.
        per_task: on the images of task k, fit every unit to its members from parent k alone, if it has any.
        extra_teachers: a second network for each parent. Heads are fitted to the mean of its outputs and the parent's.
            Only used with `trunk=False`.
    """
    parents, plan, passes = merge.parents, merge.plan, merge.passes
    copies = [working_copy(network_of(parent), passes.device) for parent in parents]
    merged = working_copy(merge.model, passes.device)
    first, last = passes.images[0], passes.images[-1]
    like = next(merged.parameters())
    probes = [pixels[None].to(like.device, like.dtype) for pixels in (first[0], last[len(last) - 1])]
    size = probes[0].shape[-2:]
    mine = merged_tracks(merged, size)
    teachers = zip([*parents] * 2, [*copies, *extra_teachers], strict=False)
    theirs = [parent_tracks(parent, net, plan, size) for parent, net in teachers]

    tracks = [mine.trunk, *mine.heads]
    groups = [find_layers(track.net, track.stages, probes[0]) for track in tracks]
    groups = groups if trunk else [_classifiers(groups[0], merge), *groups[1:]]
    layers = [[layer for group in some for layer in group.layers] for some in groups]
    read = read_positions(merged, [track.net for track in tracks], layers, probes)
    sweep = _Sweep(merge, Draw([len(images) for images in passes.images], merge.seed), groups, read)

    trunks = [mine.trunk, *(others.trunk for others in theirs)]
    replay = Replay(trunks, passes, [width * len(trunks) for width in stage_sizes(mine.trunk, probes[0])])
    sweep.trunk(replay, per_task)
    owners = [(k, number) for k in range(len(parents)) for number in range(len(theirs[k].heads))]
    for place, (head, (k, number)) in enumerate(zip(mine.heads, owners, strict=False)):  # none if merged whole
        teaching = range(k, len(theirs), len(parents))  # parent k, and its extra teacher
        heads = [head, *(theirs[i].heads[number] for i in teaching)]
        sizes = [len(heads) * width for width in stage_sizes(head, probes[0])]
        head_replay = Replay(heads, passes, sizes)
        if len(head.stages) > len(mine.trunk.stages):  # the head continues where the trunk ends
            head_replay = replay.fork([0, *(1 + i for i in teaching)], heads, sizes)
        sweep.head(head_replay, place, k, parents[k].parts[number])
    merge.model.load_state_dict(merged.state_dict())


@dataclass
class _Sweep:
    """A refit under way.

    Attributes:
        merge: the merge.
        draw: which images are held out.
        groups: the layers of the trunk, and those of every head.
        read: for trunk and heads, the positions at which layers are read where these are not all.
    """

    merge: MergeState
    draw: Draw
    groups: Sequence[Sequence[LayerGroup]]
    read: Sequence[Mapping[Layer, Tensor]]

    def trunk(self, replay: Replay, per_task: bool) -> None:
        """Refit the layers of the trunk; the replay runs it beside those of the parents."""
        net, *others = [track.net for track in replay.tracks]
        nets = others[: len(self.merge.parents)]
        branches = [branch for parent in self.merge.parents for branch in parent.parts]
        for group in self.groups[0]:
            targets = {layer: _target(self.merge, nets, layer, per_task) for layer in group.layers}
            aims = centre_logits(net, targets, self.merge.plan.binding, branches)
            fit_layers(replay, self.draw, group, aims, self.read[0])

    def head(self, replay: Replay, place: int, task: int, branch: Branch) -> None:
        """Refit the layers of a head; the replay runs it beside those that teach it, on the images of the task."""
        net, *nets = [track.net for track in replay.tracks]
        for group in self.groups[1 + place]:
            targets = {layer: identity(nets, layer) for layer in group.layers}
            aims = centre_logits(net, targets, self.merge.plan.binding, [branch])
            fit_layers(replay, self.draw, group, aims, self.read[1 + place], task)


def _classifiers(groups: Sequence[LayerGroup], merge: MergeState) -> list[LayerGroup]:
    """Those layers of a trunk that put out classes: of a model that is merged whole, its heads."""
    paths = {name.rpartition(".")[0] for name in merge.plan.binding.classifier}
    return [group for group in groups if all(layer.maps[0].module in paths for layer in group.layers)]


def stage_sizes(track: Track, value: Tensor) -> list[int]:
    """Bytes per image of what enters each stage."""
    sizes = []
    for stage in track.stages:
        sizes.append(value.nbytes)
        value = stage(value)
    return sizes


def _target(merge: MergeState, nets: Sequence[nn.Module], layer: Layer, per_task: bool) -> Target:
    """The target of a layer of the trunk; `nets` are the parents."""
    name = f"{layer.maps[0].module}.weight"
    widths = [int(net.get_parameter(name).shape[0]) for net in nets]
    return trunk_target(merge.plan.binding, merge.matches, name, widths, per_task)

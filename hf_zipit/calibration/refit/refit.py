"""The refit: layer by layer, each fitted to the parents' outputs on the merged model's own inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.fit import fit_layers
from hf_zipit.calibration.refit.held_out import Draw
from hf_zipit.calibration.refit.layers import Layer, LayerGroup, find_layers
from hf_zipit.calibration.refit.lessons import Lessons, results_of
from hf_zipit.calibration.refit.logits import Target, centre_logits
from hf_zipit.calibration.refit.read_positions import read_positions
from hf_zipit.calibration.refit.replay import Replay, Track, stage_sizes
from hf_zipit.calibration.refit.targets import identity, trunk_target
from hf_zipit.calibration.refit.tracks import merged_tracks, network_of, parent_tracks
from hf_zipit.data.batches import Passes
from hf_zipit.progress import progress
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
    networks = zip([*parents] * 2, [*copies, *extra_teachers], strict=False)
    theirs = [parent_tracks(parent, net, plan, size) for parent, net in networks]

    tracks = [mine.trunk, *mine.heads]
    groups = [find_layers(track.net, track.stages, probes[0]) for track in tracks]
    groups = groups if trunk else [_classifiers(groups[0], merge), *groups[1:]]
    layers = [[layer for group in some for layer in group.layers] for some in groups]
    read = read_positions(merged, [track.net for track in tracks], layers, probes)
    sweep = _Sweep(merge, Draw([len(images) for images in passes.images], merge.seed), groups, read)

    pupil, teachers = _side_by_side([mine.trunk, *(others.trunk for others in theirs)], passes, probes[0])
    sweep.trunk(pupil, teachers, probes[0], per_task)
    owners = [(k, number) for k in range(len(parents)) for number in range(len(theirs[k].heads))]
    for place, (head, (k, number)) in enumerate(zip(mine.heads, owners, strict=False)):  # none if merged whole
        teaching = range(k, len(theirs), len(parents))  # parent k, and its extra teacher
        mine_now, theirs_now = _side_by_side([head, *(theirs[i].heads[number] for i in teaching)], passes, probes[0])
        if len(head.stages) > len(mine.trunk.stages):  # the head continues where the trunk ends
            mine_now = pupil.fork([0], mine_now.tracks, mine_now.sizes)
            theirs_now = teachers.fork(teaching, theirs_now.tracks, theirs_now.sizes)
        sweep.head(mine_now, theirs_now, probes[0], place, k, parents[k].parts[number])
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

    def trunk(self, pupil: Replay, teachers: Replay, probe: Tensor, per_task: bool) -> None:
        """Refit the layers of the trunk; `probe` is an image."""
        nets = [track.net for track in teachers.tracks][: len(self.merge.parents)]
        targets = {layer: _target(self.merge, nets, layer, per_task) for layer in self._layers(0)}
        branches = [branch for parent in self.merge.parents for branch in parent.parts]
        self._fit(pupil, teachers, probe, targets, branches, 0)

    def head(self, pupil: Replay, teachers: Replay, probe: Tensor, place: int, task: int, branch: Branch) -> None:
        """Refit the layers of a head on the images of its task; `probe` is an image."""
        nets = [track.net for track in teachers.tracks]
        targets = {layer: identity(nets, layer) for layer in self._layers(1 + place)}
        self._fit(pupil, teachers, probe, targets, [branch], 1 + place, task)

    def _layers(self, network: int) -> list[Layer]:
        """The layers of the trunk (0) or of one of the heads (1 and on)."""
        return [layer for group in self.groups[network] for layer in group.layers]

    def _fit(
        self,
        pupil: Replay,
        teachers: Replay,
        probe: Tensor,
        targets: Mapping[Layer, Target],
        branches: Sequence[Branch],
        network: int,
        task: int | None = None,
    ) -> None:
        """Refit the layers of one network, in running order."""
        groups = self.groups[network]
        track = pupil.tracks[0]
        aims = centre_logits(track.net, targets, self.merge.plan.binding, branches)
        results = results_of(track, groups, probe)
        sizes = {layer: result.nbytes for layer, result in results.items()}
        positions = {layer: int(result.shape[1]) for layer, result in results.items()}
        lessons = Lessons(teachers, groups, aims, sizes, pupil.share)
        what = f"head {network}" if network else "the trunk"
        for group in progress(groups, f"Refitting {what}", pupil.passes.accelerator):
            fit_layers(pupil, lessons, self.draw, group, positions, self.read[network], task)


def _side_by_side(tracks: Sequence[Track], passes: Passes, probe: Tensor) -> tuple[Replay, Replay]:
    """Replays of the first track, and of the others, which share the memory with the targets of the first."""
    sizes = stage_sizes(tracks[0], probe)
    share = 1 / (len(tracks) + 1)
    others = [width * (len(tracks) - 1) for width in sizes]
    return (
        Replay(tracks[:1], passes, sizes, share),
        Replay(tracks[1:], passes, others, share * (len(tracks) - 1)),
    )


def _classifiers(groups: Sequence[LayerGroup], merge: MergeState) -> list[LayerGroup]:
    """Those layers of a trunk that put out classes: of a model that is merged whole, its heads."""
    paths = {name.rpartition(".")[0] for name in merge.plan.binding.classifier}
    return [group for group in groups if all(layer.maps[0].module in paths for layer in group.layers)]


def _target(merge: MergeState, nets: Sequence[nn.Module], layer: Layer, per_task: bool) -> Target:
    """The target of a layer of the trunk; `nets` are the parents."""
    name = f"{layer.maps[0].module}.weight"
    widths = [int(net.get_parameter(name).shape[0]) for net in nets]
    return trunk_target(merge.plan.binding, merge.matches, name, widths, per_task)

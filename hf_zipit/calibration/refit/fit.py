"""Fitting the layers of a group: one pass over the images, and the choice of their new weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zipit.calibration.refit.affine import FoldedLayer, FoldedNorm, fold_layer
from hf_zipit.calibration.refit.choose import PartFit, choose, split
from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.held_out import Draw
from hf_zipit.calibration.refit.layers import Layer, LayerGroup
from hf_zipit.calibration.refit.lessons import Lessons
from hf_zipit.calibration.refit.normal_equations import NormalEquations
from hf_zipit.calibration.refit.observe import LayerObserver
from hf_zipit.calibration.refit.replay import Batch, Replay, Track

INPUTS = 9216  # layers with more inputs than this, or than samples, are solved in the dual
NUMBERS = 2**27  # upper limit on the numbers stored for the dual; beyond it only one block of ten images in k is read


@dataclass
class LayerFit:
    """A layer while it is fitted.

    Attributes:
        folded: the layer as one affine map.
        every: of the blocks of ten images, one in so many is read.
        parts: the regressions of its units.
    """

    folded: FoldedLayer | FoldedNorm
    every: int
    parts: list[PartFit]


def fit_layers(
    pupil: Replay,
    lessons: Lessons,
    draw: Draw,
    group: LayerGroup,
    positions: Mapping[Layer, int],
    read: Mapping[Layer, Tensor],
    task: int | None = None,
) -> None:
    """Refit the layers of a group in one pass.

    Args:
        pupil: the merged network.
        lessons: what its layers are fitted to.
        draw: which images are held out.
        group: the layers.
        positions: how many positions of an image each layer is fitted at.
        read: the positions at which the units of a layer are read, `(P, units)`, where these are not all.
        task: the task whose images are read; `None` reads all. A single data set is read in any case.
    """
    data_sets = pupil.passes.images
    task = None if len(data_sets) == 1 else task
    images = sum(len(data_set) for k, data_set in enumerate(data_sets) if task in (None, k))
    fits = {layer: _begin(pupil, layer, read.get(layer), images * positions[layer]) for layer in group.layers}
    batches = pupil.batches(group.first, f"Refitting {group.layers[0].maps[0].module}")
    for batch, taught in zip(batches, lessons.batches(group), strict=True):
        _add(pupil, draw, group, fits, batch, taught, task)
    for fit in fits.values():
        for part in fit.parts:
            part.reduce(pupil.passes.accelerator)
        choose(fit.folded, fit.parts, pupil.passes.accelerator)


def _begin(replay: Replay, layer: Layer, read: Tensor | None, samples: int) -> LayerFit:
    """A layer with regressions of no samples; arguments as for `fit_layers` and `_kind`."""
    folded = fold_layer(replay.tracks[0].net, layer)
    groups, units, inputs = folded.weight.shape
    kind, every = _kind(folded.weight, samples)
    parts = []
    for mine, positions in split(read if groups == 1 else None, units):
        empty = [kind.empty(groups, inputs, len(mine), replay.passes.device) for _ in range(3)]
        parts.append(PartFit(mine, positions, empty[0], empty[1], None if positions is None else empty[2]))
    return LayerFit(folded, every, parts)


def _add(
    pupil: Replay,
    draw: Draw,
    group: LayerGroup,
    fits: Mapping[Layer, LayerFit],
    batch: Batch,
    taught: Mapping[Layer, Tensor],
    task: int | None,
) -> None:
    """Add a batch of images to the regressions of a group's layers; arguments as for `fit_layers`."""
    seen = _observe(pupil.tracks[0], group, batch.values[0])
    held = draw.held(batch.task, batch.number)
    mine = torch.ones_like(held) if task is None else batch.task == task
    for layer, fit in fits.items():
        e = taught[layer] - seen.results[layer]
        e = e.reshape(*e.shape[:2], fit.folded.groups, -1)
        chosen = mine & draw.read(batch.task, batch.number, fit.every)
        for part in fit.parts:
            part.update(seen.inputs[layer], e, chosen & ~held, chosen & held)


def _kind(weight: Tensor, samples: int) -> tuple[type[NormalEquations] | type[Samples], int]:
    """The accumulator for a layer, and k: one block of ten images in k is read.

    Args:
        weight: its folded weight, `(G, m, d)`.
        samples: how many samples there are to fit it.
    """
    inputs, outputs = weight.shape[2], weight.shape[1]
    if inputs <= min(samples, INPUTS):
        return NormalEquations, 1
    return Samples, -(-samples // min(INPUTS, NUMBERS // (len(weight) * (inputs + outputs))))


def _observe(track: Track, group: LayerGroup, value: Tensor) -> LayerObserver:
    """What the layers of a group read and put out, from what enters its first stage."""
    seen = LayerObserver(track.net, group.layers, len(value), stop=True, parameters=track.parameters)
    with seen:
        track.run(value, group.first, group.last + 1)
    return seen

"""How much memory a refit takes, from the shapes of a parent alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit import replay
from hf_zipit.calibration.refit.affine import module_at
from hf_zipit.calibration.refit.fit import INPUTS, NUMBERS
from hf_zipit.calibration.refit.layers import Layer, find_layers
from hf_zipit.calibration.refit.lessons import results_of, windows
from hf_zipit.calibration.refit.replay import stage_sizes
from hf_zipit.calibration.refit.tracks import network_of, parent_tracks
from hf_zipit.running import working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan

DOUBLE = 8  # bytes
FLOAT = 4


@torch.no_grad()
def refit_bytes(parents: Sequence[Source], plan: Plan, size: Sequence[int], images: int | None, batch_size: int) -> int:
    """Bytes that a refit takes at most besides models and the activations of a batch.

    They are the inputs of a stage that it keeps for all images, the targets of the layers in it, and the regressions of
    its largest group of layers.

    Args:
        parents: the models; the one with the most parameters tells the shapes. It may be on the meta device.
        plan: where trunk and heads meet, and how wide the trunk is.
        size: `(channels, height, width)` of an image.
        images: how many there are; `None` if that is not known.
        batch_size: how many are read at a time.
    """
    source = max(parents, key=lambda parent: sum(value.numel() for value in parent.model.parameters()))
    device = next(source.model.parameters()).device
    tracks = parent_tracks(source, working_copy(network_of(source), device), plan, size[1:])
    pixel = torch.zeros(1, *size, device=device)
    kept = targets = largest = 0
    limit = replay.MEMORY / (len(parents) + 2)  # for one of the networks, or for the targets
    wider = max([1.0, *plan.ratios.values()])
    for track in [tracks.trunk, *tracks.heads]:
        for width in stage_sizes(track, pixel):
            needed = limit if images is None else width * images
            kept = max(kept, round(needed * (len(parents) + 1)) if needed <= limit else 0)
        groups = find_layers(track.net, track.stages, pixel)
        results = results_of(track, groups, pixel)
        sizes = {layer: result.nbytes for layer, result in results.items()}
        for window in windows(groups, sizes, limit / max(1, images or 1)):
            later = sum(sizes[layer] for group in window.groups[1:] for layer in group.layers)
            targets = max(targets, round(limit) if images is None else later * images)
        for group in groups:
            shapes = [_Shape.of(track.net, layer, results[layer], wider) for layer in group.layers]
            costs = [shape.cost(images, batch_size) for shape in shapes]
            largest = max(largest, sum(held for held, _ in costs) + max(work for _, work in costs))
    return kept + targets + largest


@dataclass
class _Shape:
    """A layer's groups, inputs and outputs of each group, positions, and whether these may be read in part."""

    groups: int
    inputs: int
    outputs: int
    positions: int
    tokens: bool

    @classmethod
    def of(cls, net: nn.Module, layer: Layer, result: Tensor, wider: float) -> "_Shape":
        """The shape of a layer with this result, `(1, P, units)`, in a merge so many times wider."""
        positions, units = result.shape[1:]
        if layer.maps[0].norm_only:
            return cls(round(wider * units), 1, 1, positions, False)
        modules = [module_at(net, affine.module) for affine in layer.maps]
        groups = getattr(modules[0], "groups", 1)
        inputs = sum(module.weight[0].numel() for module in modules)
        tokens = isinstance(modules[0], nn.Linear) and positions > 1
        return cls(groups, round(wider * inputs), round(wider * units / groups), positions, tokens)

    def cost(self, images: int | None, batch_size: int) -> tuple[int, int]:
        """Bytes of the layer's regressions while images are read, and those that adding and solving takes besides."""
        both = self.groups * (self.inputs + self.outputs)
        samples = INPUTS if images is None else images * self.positions
        if self.inputs <= min(samples, INPUTS):
            one = DOUBLE * both * self.inputs
            parts = 3 if self.tokens else 2
            return parts * one, max(parts * one, 2 * FLOAT * batch_size * self.positions * both)
        samples = min(samples, INPUTS, NUMBERS // both)
        return FLOAT * samples * both, samples * (2 * FLOAT * both + 3 * DOUBLE * self.groups * samples)

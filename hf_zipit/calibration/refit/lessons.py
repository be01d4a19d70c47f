"""What the parents' layers put out, as targets of the layers that are fitted, read stage by stage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_zipit.calibration.refit import replay
from hf_zipit.calibration.refit.layers import Layer, LayerGroup
from hf_zipit.calibration.refit.logits import Target
from hf_zipit.calibration.refit.observe import LayerObserver
from hf_zipit.calibration.refit.replay import Replay, Track, images_of


@dataclass(frozen=True)
class Window:
    """Groups of layers that are read in one pass through the stages in which they run.

    Attributes:
        groups: the groups, in running order.
        onward: whether no group behind them runs in the same stages.
    """

    groups: tuple[LayerGroup, ...]
    onward: bool

    @property
    def first(self) -> int:
        """The first stage of all."""
        return min(group.first for group in self.groups)

    @property
    def last(self) -> int:
        """The last stage of all."""
        return max(group.last for group in self.groups)


class Lessons:
    """What the layers of the merged network are to put out, batch by batch.

    The parents run through a stage once for all layers in it, if the targets of those that are fitted later fit into
    the memory. Otherwise they run through it again for each group of layers.

    Args:
        teachers: the parents' networks.
        groups: all groups of layers, in the order in which they are asked for.
        aims: the target of every layer.
        sizes: bytes per image of the target of every layer.
        share: the share of `replay.MEMORY` that is for targets.
    """

    def __init__(
        self,
        teachers: Replay,
        groups: Sequence[LayerGroup],
        aims: Mapping[Layer, Target],
        sizes: Mapping[Layer, int],
        share: float,
    ) -> None:
        self.teachers = teachers
        self.aims = aims
        limit = share * replay.MEMORY / max(1, images_of(teachers.passes))
        self.windows = {window.groups[0]: window for window in windows(groups, sizes, limit)}
        self.stored: dict[LayerGroup, list[dict[Layer, Tensor]]] = {}

    def batches(self, group: LayerGroup) -> Iterator[dict[Layer, Tensor]]:
        """For every batch of images, the targets of the layers of a group, `(B, P, units)`."""
        if group in self.stored:
            yield from self.stored.pop(group)
            return
        window = self.windows[group]
        layers = [layer for one in window.groups for layer in one.layers]

        def watch(track: Track, images: int) -> LayerObserver:
            return LayerObserver(track.net, layers, images, inputs=False, parameters=track.parameters)

        self.stored |= {later: [] for later in window.groups[1:]}
        label = f"Reading {group.layers[0].maps[0].module}"
        for seen, task in self.teachers.watched(window.first, window.last, watch, label, window.onward):
            answers = {layer: self.aims[layer]([one.results[layer] for one in seen], task) for layer in layers}
            for later in window.groups[1:]:
                self.stored[later].append({layer: answers[layer] for layer in later.layers})
            yield {layer: answers[layer] for layer in group.layers}


def windows(groups: Sequence[LayerGroup], sizes: Mapping[Layer, int], limit: float) -> list[Window]:
    """Groups of layers divided into those that are read in one pass.

    Groups whose stages overlap are read together, if the targets of all but the first fit into the memory.

    Args:
        groups: the groups, in running order.
        sizes: bytes per image of the target of every layer.
        limit: bytes per image that may be kept.
    """
    together: list[list[LayerGroup]] = []
    for group in groups:
        if together and group.first <= max(one.last for one in together[-1]):
            together[-1].append(group)
        else:
            together.append([group])
    found = []
    for some in together:
        kept = sum(sizes[layer] for group in some[1:] for layer in group.layers)
        if kept <= limit:
            found.append(Window(tuple(some), onward=True))
            continue
        alone = [Window((group,), onward=False) for group in some[:-1]]
        found += [*alone, Window((some[-1],), onward=True)]
    return found


def results_of(track: Track, groups: Sequence[LayerGroup], value: Tensor) -> dict[Layer, Tensor]:
    """What every layer puts out for one image, at the positions that are read, `(1, P, units)`.

    Args:
        track: the network.
        groups: its layers.
        value: one image, `(1, channels, H, W)`.
    """
    layers = [layer for group in groups for layer in group.layers]
    with LayerObserver(track.net, layers, images=1, inputs=False) as seen:
        track.run(value, 0, len(track.stages))
    return {layer: seen.results[layer] for layer in layers}

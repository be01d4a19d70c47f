"""Running several networks side by side over the same images, from any stage on."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_zipit.data.batches import Passes

MEMORY = 2 * 2**30  # upper limit on the bytes of activations that one process keeps


@dataclass(frozen=True)
class Track:
    """A network whose layers are observed, and the stages whose composition is its forward pass."""

    net: nn.Module
    stages: tuple[Callable[[Tensor], Tensor], ...]


@dataclass
class Batch:
    """What enters a stage.

    Attributes:
        values: one tensor per track.
        task: the data set of every image, `(B,)`.
        number: the number of every image in its data set, `(B,)`.
    """

    values: list[Tensor]
    task: Tensor
    number: Tensor


@dataclass
class Replay:
    """Passes over the images that start at any stage.

    The inputs of the latest stage asked for are kept for all batches if they fit into `MEMORY`, and the next pass
    starts there. Otherwise a pass starts from the images.

    Attributes:
        tracks: the networks that run side by side.
        passes: the images.
        sizes: for each stage, the bytes per image that enter it, all tracks together.
        start: the stage whose inputs are kept; -1 if none are.
        kept: those inputs, batch by batch.
        taken: bytes of `MEMORY` that the replay from which this one goes on keeps.
    """

    tracks: Sequence[Track]
    passes: Passes
    sizes: Sequence[int]
    start: int = -1
    kept: list[Batch] = field(default_factory=list)
    taken: int = 0

    def batches(self, stage: int, label: str) -> Iterator[Batch]:
        """One pass over this process's share of the batches: what enters a stage."""
        keep = stage > self.start and self._fits(stage)
        fresh: list[Batch] = []
        for i, batch in enumerate(self._stored(label)):
            done = max(self.start, 0)
            values = []
            for track, value in zip(self.tracks, batch.values, strict=True):
                for run in track.stages[done:stage]:
                    value = run(value)
                values.append(value)
            out = Batch(values, batch.task, batch.number)
            if keep and self.kept:
                self.kept[i] = out
            elif keep:
                fresh.append(out)
            yield _copied(out)
        if keep:
            self.start = stage
            self.kept = self.kept or fresh

    def _stored(self, label: str) -> Iterator[Batch]:
        """Copies of the kept batches, or batches of images: a stage may change its input in place."""
        if self.start >= 0:
            for batch in self.kept:
                yield _copied(batch)
            return
        device = self.passes.device
        dtype = next(self.tracks[0].net.parameters()).dtype
        for pixels, task, number in self.passes.numbered(label):
            pixels = pixels.to(device, dtype, memory_format=torch.channels_last)
            yield Batch([pixels.clone() for _ in self.tracks], task.to(device), number.to(device))

    def _fits(self, stage: int) -> bool:
        """Whether the inputs of a stage fit into memory."""
        images = sum(len(data_set) for data_set in self.passes.images)
        share = math.ceil(images / int(self.passes.accelerator.num_processes))
        return self.sizes[stage] * share <= MEMORY - self.taken

    def fork(self, tracks: Sequence[int], heads: Sequence[Track], sizes: Sequence[int]) -> "Replay":
        """A replay that goes on from what is kept of some of the tracks.

        Args:
            tracks: the numbers of these tracks.
            heads: what runs in the new replay, one track for each of them.
            sizes: bytes per image that enter each stage of the heads, all heads together.
        """
        kept = [Batch([batch.values[i] for i in tracks], batch.task, batch.number) for batch in self.kept]
        taken = sum(value.nbytes for batch in self.kept for value in batch.values)
        return Replay(heads, self.passes, sizes, self.start, kept, taken)


def _copied(batch: Batch) -> Batch:
    return Batch([value.clone() for value in batch.values], batch.task, batch.number)

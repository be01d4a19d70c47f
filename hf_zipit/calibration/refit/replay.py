"""Running several models stage by stage over the same images, from the last stage whose inputs are still at hand."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hf_zipit.data.batches import Passes

MEMORY = 2 * 2**30  # bytes of activations that one process keeps


@dataclass(frozen=True)
class Track:
    """A network whose layers are looked at, and the stages whose composition is its forward pass."""

    net: nn.Module
    stages: tuple[Callable[[Tensor], Tensor], ...]


@dataclass
class Batch:
    """What enters a stage: one tensor per track; the data set of every image, and its number there, `(B,)`."""

    values: list[Tensor]
    task: Tensor
    number: Tensor


@dataclass
class Replay:
    """Passes over the images that start at any stage.

    Every batch's inputs of the latest stage asked for are kept, where they fit into `MEMORY`; the next pass starts
    there. Otherwise it starts from the images.
    """

    tracks: Sequence[Track]
    passes: Passes
    sizes: Sequence[int]  # bytes per image that enter each stage, all tracks together
    start: int = -1  # the stage whose inputs are kept
    kept: list[Batch] = field(default_factory=list)

    def batches(self, stage: int, label: str) -> Iterator[Batch]:
        """One pass: what enters a stage, batch by batch, in this process's share."""
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
            yield Batch([value.clone() for value in values], batch.task, batch.number)
        if keep:
            self.start, self.kept = stage, self.kept or fresh

    def _stored(self, label: str) -> Iterator[Batch]:
        if self.start >= 0:
            for batch in self.kept:
                yield Batch([value.clone() for value in batch.values], batch.task, batch.number)
            return
        device, dtype = self.passes.device, next(self.tracks[0].net.parameters()).dtype
        for pixels, task, number in self.passes.numbered(label):
            pixels = pixels.to(device, dtype, memory_format=torch.channels_last)
            yield Batch([pixels.clone() for _ in self.tracks], task.to(device), number.to(device))

    def _fits(self, stage: int) -> bool:
        images = sum(len(part) for part in self.passes.images)
        return self.sizes[stage] * math.ceil(images / int(self.passes.accelerator.num_processes)) <= MEMORY

    def fork(self, tracks: Sequence[int], heads: Sequence[Track], sizes: Sequence[int]) -> "Replay":
        """A replay of some of the tracks, continued in their own ways."""
        kept = [Batch([b.values[i] for i in tracks], b.task, b.number) for b in self.kept]
        return Replay(heads, self.passes, sizes, self.start, kept)

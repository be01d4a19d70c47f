"""Running several networks side by side over the same images, from any stage on."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.follow import AffineParameters
from hf_zipit.data.batches import Passes

MEMORY = 2 * 2**30  # upper limit on the bytes of activations that one process keeps
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Track:
    """A network whose layers are observed, and the stages whose composition is its forward pass."""

    net: nn.Module
    stages: tuple[Callable[[Tensor], Tensor], ...]

    @cached_property
    def parameters(self) -> AffineParameters:
        """The parameters of the network's affine maps. A refit changes their values in place."""
        return AffineParameters(self.net)

    def run(self, value: Tensor, first: int, end: int) -> Tensor:
        """Run the stages from `first` up to, but not including, `end`."""
        for stage in self.stages[first:end]:
            value = stage(value)
        return value


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

    The inputs of the latest stage asked for are kept for all batches if they fit into the memory, and the next pass
    starts there. Otherwise a pass starts from the images.

    Attributes:
        tracks: the networks that run side by side.
        passes: the images.
        sizes: for each stage, and behind the last, the bytes per image that enter it, all tracks together.
        share: the share of `MEMORY` that is for this replay.
        start: the stage whose inputs are kept; -1 if none are.
        kept: those inputs, batch by batch.
        taken: bytes of the share that the replay from which this one goes on keeps.
    """

    tracks: Sequence[Track]
    passes: Passes
    sizes: Sequence[int]
    share: float = 1.0
    start: int = -1
    kept: list[Batch] = field(default_factory=list)
    taken: int = 0

    def batches(self, stage: int, label: str) -> Iterator[Batch]:
        """One pass over this process's share of the batches: what enters a stage."""
        for batch, found in self._pass(stage, label, lambda track, value: (self._at(track, value, stage), None)):
            values = [value for value, _ in found]
            kept = self._keeps(stage)  # a stage may change its input in place
            yield Batch([value.clone() for value in values] if kept else values, batch.task, batch.number)

    def watched(
        self,
        first: int,
        last: int,
        watch: Callable[[Track, int], AbstractContextManager[Seen]],
        label: str,
        onward: bool,
    ) -> Iterator[tuple[list[Seen], Tensor]]:
        """One pass through some stages: what was seen of each track, and the task of every image, batch by batch.

        Args:
            first, last: the stages.
            watch: observes a track that runs so many images, while its context is open.
            label: shown beside the progress bar.
            onward: whether no later pass starts at these stages; then the inputs of the next one are kept.
        """

        def run(track: Track, value: Tensor) -> tuple[Tensor, Seen]:
            value = self._at(track, value, first)
            entered = value if onward else value.clone()
            with watch(track, len(value)) as seen:
                value = track.run(value, first, last + 1)
            return value if onward else entered, seen

        for batch, found in self._pass(last + 1 if onward else first, label, run):
            yield [seen for _, seen in found], batch.task

    def _pass(
        self, keep_at: int, label: str, run: Callable[[Track, Tensor], tuple[Tensor, Seen]]
    ) -> Iterator[tuple[Batch, list[tuple[Tensor, Seen]]]]:
        """One pass that runs every track on what is kept; what enters stage `keep_at` is kept instead, if it fits."""
        keep = self._keeps(keep_at)
        fresh: list[Batch] = []
        for i, batch in enumerate(self._stored(label)):
            found = [run(track, value) for track, value in zip(self.tracks, batch.values, strict=True)]
            if keep:
                out = Batch([value for value, _ in found], batch.task, batch.number)
                if self.kept:
                    self.kept[i] = out
                else:
                    fresh.append(out)
            yield batch, found
        if keep:
            self.start = keep_at
            self.kept = self.kept or fresh

    def _at(self, track: Track, value: Tensor, stage: int) -> Tensor:
        """What enters a stage, from what is kept."""
        return track.run(value, max(self.start, 0), stage)

    def _stored(self, label: str) -> Iterator[Batch]:
        """Copies of the kept batches, or batches of images: a stage may change its input in place."""
        if self.start >= 0:
            for batch in self.kept:
                yield Batch([value.clone() for value in batch.values], batch.task, batch.number)
            return
        device = self.passes.device
        dtype = next(self.tracks[0].net.parameters()).dtype
        for pixels, task, number in self.passes.numbered(label):
            pixels = pixels.to(device, dtype, memory_format=torch.channels_last)
            yield Batch([pixels.clone() for _ in self.tracks], task.to(device), number.to(device))

    def _keeps(self, stage: int) -> bool:
        """Whether a pass keeps the inputs of a stage: those of a later one than are kept now, if they fit."""
        return stage > self.start and self._fits(stage)

    def _fits(self, stage: int) -> bool:
        """Whether the inputs of a stage fit into memory."""
        return self.sizes[stage] * images_of(self.passes) <= self.share * MEMORY - self.taken

    def fork(self, tracks: Sequence[int], heads: Sequence[Track], sizes: Sequence[int]) -> "Replay":
        """A replay that goes on from what is kept of some of the tracks.

        Args:
            tracks: the numbers of these tracks.
            heads: what runs in the new replay, one track for each of them.
            sizes: bytes per image that enter each stage of the heads, all heads together.
        """
        kept = [Batch([batch.values[i] for i in tracks], batch.task, batch.number) for batch in self.kept]
        taken = sum(value.nbytes for batch in self.kept for value in batch.values)
        return Replay(heads, self.passes, sizes, self.share, self.start, kept, taken)


def images_of(passes: Passes) -> int:
    """How many images one process reads at most."""
    images = sum(len(data_set) for data_set in passes.images)
    return math.ceil(images / int(passes.accelerator.num_processes))


def stage_sizes(track: Track, value: Tensor) -> list[int]:
    """Bytes per image of what enters each stage, and of what the last puts out.

    Args:
        track: the network.
        value: one image, `(1, channels, H, W)`.
    """
    sizes = [value.nbytes]
    for number in range(len(track.stages)):
        value = track.run(value, number, number + 1)
        sizes.append(value.nbytes)
    return sizes

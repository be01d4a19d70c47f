"""Statistics of the models' activations, per space and task, in one pass over the data.

All models see the same batches. Nothing is gathered: each process sums over its own batches, and one reduction follows.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_zipit.data.batches import Passes
from hf_zipit.errors import DataError
from hf_zipit.models.steps import run_steps
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.moments import AnyMoments, Moments, ReferenceMoments
from hf_zipit.statistics.probes import POSITIONS, Reader, tokens_read

READ = 3 * 2**27  # bytes of what is read at a time, of all models


@dataclass
class SpaceStatistics:
    """The moments of one space.

    Attributes:
        space: the space.
        sizes: the number of units of each model. The moments are those of all models' units stacked, `sum(sizes)`.
        moments: over the data of all tasks.
    """

    space: FeatureSpace
    sizes: tuple[int, ...]
    moments: AnyMoments


class Rider(Protocol):
    """What else is read while the models run."""

    @property
    def modules(self) -> Iterable[str]:
        """The modules that must run for it."""
        raise NotImplementedError

    def watching(self, models: Sequence[nn.Module]) -> AbstractContextManager[Callable[[bool], int]]:
        """Watch these models. What it gives is called once all ran: it adds what was read, or with False forgets it.

        It says how many bytes that was.
        """
        raise NotImplementedError

    def reduce(self, accelerator: Accelerator) -> None:
        """Take together what all processes have read."""
        raise NotImplementedError


def collect(
    models: Sequence[nn.Module],
    binding: Binding,
    passes: Passes,
    *,
    spaces: Iterable[str],
    names: Sequence[str],
    compat: bool = False,
    rider: Rider | None = None,
) -> dict[str, SpaceStatistics]:
    """Run every batch through every model once and accumulate the moments of the named spaces.

    Args:
        models: in eval mode, on the device of the passes. Hooks are attached for the pass and removed again.
        binding: the spaces of the models, and the steps that run them.
        passes: over the images, one data set for each task; every process takes its share of the batches.
        spaces: names of the spaces to observe; those without probes are left out.
        names: the models' names, for error messages.
        compat: accumulate as the authors' code does, over all positions and tasks together.
        rider: what else is read in the same pass.

    Raises:
        DataError: there are no images, or a unit's activations are not finite.
    """
    chosen = set(spaces)
    # In the order of the binding: all processes must reduce the spaces in the same order.
    wanted = {name: space for name, space in binding.spaces.items() if name in chosen and space.probes}
    device = passes.device
    stats = {}
    for name, space in wanted.items():
        sizes = space.sizes(len(models))
        kind = ReferenceMoments if compat else Moments
        stats[name] = SpaceStatistics(space, sizes, kind.empty(sum(sizes), device))
    images = sum(map(len, passes.images))
    tokens = {} if compat else {name: tokens_read(sum(one.sizes), images) for name, one in stats.items()}
    probed = [probe.module for space in wanted.values() for probe in space.probes]
    runs = [_PartialRun(model, binding, [*probed, *(rider.modules if rider else ())]) for model in models]
    layout = torch.contiguous_format if compat else torch.channels_last
    with ExitStack() as stack, torch.no_grad():
        readers = []
        for k, model in enumerate(models):
            own = {name: space.of(k) for name, space in wanted.items()}
            readers.append(stack.enter_context(Reader(model, own, None if compat else POSITIONS, tokens)))
        ride = stack.enter_context(rider.watching(models)) if rider else None
        reading = _Reading(stats, runs, readers, ride, most=sys.maxsize if compat else 0)  # compat: whole batches
        for pixels, _ in passes("Reading activations"):
            reading.add(pixels.to(device, next(models[0].parameters()).dtype, memory_format=layout))
    if rider:
        rider.reduce(passes.accelerator)
    for statistics in stats.values():
        statistics.moments.reduce(passes.accelerator)
        _check(statistics, names)
    return stats


class _PartialRun:
    """Runs a model for its hooks, up to the last step that holds one of the modules `until`.

    If one of these is in no step, the whole model runs.
    """

    def __init__(self, model: nn.Module, binding: Binding, until: Iterable[str]) -> None:
        until = list(until)
        last = [i for i, step in enumerate(binding.steps) if binding.under([step], until)]
        covered = all(any(binding.under([step], [name]) for step in binding.steps) for name in until)
        whole = binding.spec.interrupts  # a model that is not ours is not prepared for interruptions
        self.model = model
        self.steps = binding.calls(binding.steps[: max(last) + 1]) if last and covered and not whole else []

    def __call__(self, pixels: Tensor) -> None:
        """Run a batch `(B, 3, H, W)`."""
        if not self.steps:
            self.model(pixels)
        run_steps(self.model, self.steps, pixels, pixels.shape[-2:])


@dataclass
class _Reading:
    """A pass under way.

    Attributes:
        stats: by space, what is added to.
        runs: run each model.
        readers: of the probes of each model.
        ride: what `Rider.watching` gave.
        most: images that are read at a time; 0 before the first.
    """

    stats: Mapping[str, SpaceStatistics]
    runs: Sequence[_PartialRun]
    readers: Sequence[Reader]
    ride: Callable[[bool], int] | None
    most: int = 0

    def add(self, pixels: Tensor) -> None:
        """Read a batch `(B, channels, H, W)`, so many images at a time that what is read takes at most `READ` bytes.

        The first image tells how many these are. It is read once more, so that a batch is always divided alike.
        """
        self.most = self.most or max(1, READ // max(self._read(pixels[:1], add=False), 1))
        for some in torch.split(pixels, self.most):
            self._read(some, add=True)

    def _read(self, pixels: Tensor, add: bool) -> int:
        """Read some images, and add what was read to the statistics or forget it; its bytes."""
        for run in self.runs:
            run(pixels)
        taken = self.ride(add) if self.ride else 0
        for name, statistics in self.stats.items():
            features = [reader.pop(name) for reader in self.readers]
            taken += sum(value.nbytes for mine in features for value in mine)
            for values in zip(*features, strict=True) if add else ():
                statistics.moments.update(torch.cat(values, dim=-1))  # (B, P, sum(sizes))
        return taken


def _check(statistics: SpaceStatistics, names: Sequence[str]) -> None:
    """Refuse statistics of no images, or with values that are not finite."""
    total = statistics.moments
    if not total.count:
        raise DataError("the data holds no images")
    bad = (~(total.mean.isfinite() & total.variance.isfinite())).nonzero().flatten()
    if len(bad):
        owners = torch.arange(len(names)).repeat_interleave(torch.tensor(statistics.sizes))[bad.cpu()]
        first = int(owners[0])
        size = statistics.sizes[first]
        count = int((owners == first).sum())
        raise DataError(
            f"{names[first]}: {count} of {size} units of space '{statistics.space.name}' are NaN or "
            "infinite on this data; check the model's weights and its preprocessing"
        )

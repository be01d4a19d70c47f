"""Statistics of the models' activations, per space and task, in one pass over the data.

All models see the same batch. Nothing is gathered: each process sums its own batches and one reduction follows.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_zipit.errors import DataError
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.chain import ModelChain
from hf_zipit.statistics.moments import AnyMoments, Moments, ReferenceMoments
from hf_zipit.statistics.probes import POSITIONS, Reader


@dataclass
class SpaceStatistics:
    """The moments of one space: one entry per task, in task order (one for all under `compat`)."""

    space: FeatureSpace
    sizes: tuple[int, ...]
    tasks: list[AnyMoments]

    @property
    def pooled(self) -> AnyMoments:
        """The moments over the data of all tasks."""
        first, *rest = self.tasks
        for moments in rest:
            first = first + moments  # type: ignore[operator]
        return first


def collect(
    models: Sequence[nn.Module],
    binding: Binding,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    spaces: Iterable[str],
    tasks: int,
    names: Sequence[str],
    accelerator: Accelerator,
    device: torch.device,
    compat: bool = False,
) -> dict[str, SpaceStatistics]:
    """Run every batch through every model once and accumulate the moments of the named spaces.

    Args:
        models: in eval mode, on `device`; hooks are attached for the pass and removed again.
        batches: `(pixels (B, 3, H, W), task (B,))`, this process's share.
        tasks: number of tasks; `task` counts from 0.
        names: the models' names, for messages.
        compat: accumulate as the authors' code does, over all positions and tasks together.

    Raises:
        DataError: no image came, or a unit's activations are not finite.
    """
    chosen = set(spaces)  # in the binding's order: every process must reduce in the same one
    wanted = {name: space for name, space in binding.spaces.items() if name in chosen and space.probes}
    stats = {}
    for name, space in wanted.items():
        sizes = (space.size,) * len(models)
        if compat:
            stats[name] = SpaceStatistics(space, sizes, [ReferenceMoments.empty(sum(sizes), device)])
        else:
            stats[name] = SpaceStatistics(space, sizes, [Moments.empty(sum(sizes), device) for _ in range(tasks)])
    with ExitStack() as stack, torch.inference_mode():
        readers = [stack.enter_context(Reader(model, wanted, None if compat else POSITIONS)) for model in models]
        probed = [probe.module for space in wanted.values() for probe in space.probes]
        chains = [ModelChain(model, binding, until=probed) for model in models]
        for pixels, task in batches:
            layout = torch.contiguous_format if compat else torch.channels_last
            pixels = pixels.to(device, next(models[0].parameters()).dtype, memory_format=layout)
            for chain in chains:
                chain(pixels)
            for name, entry in stats.items():
                _accumulate(entry, [reader.pop(name) for reader in readers], task)
    for entry in stats.values():
        for moments in entry.tasks:
            moments.reduce(accelerator)
        _check(entry, names)
    return stats


def _accumulate(entry: SpaceStatistics, features: list[list[Tensor]], task: Tensor) -> None:
    """Add one batch: `features[model][probe]` has shape (B, P, size)."""
    for probe in range(len(features[0])):
        values = torch.cat([f[probe] for f in features], dim=-1)  # (B, P, N * size)
        for index, moments in enumerate(entry.tasks):
            mine = values if len(entry.tasks) == 1 else values[task.to(values.device) == index]
            if len(mine):
                moments.update(mine)


def _check(entry: SpaceStatistics, names: Sequence[str]) -> None:
    total = entry.pooled
    if not total.count:
        raise DataError("the data holds no image")
    bad = (~total.mean.isfinite()).nonzero().flatten()
    if len(bad):
        size = entry.sizes[0]
        first = int(bad[0]) // size
        count = int((bad // size == first).sum())
        raise DataError(
            f"{names[first]}: {count} of {size} units of space '{entry.space.name}' are NaN or "
            "infinite on this data; check the model's weights and its preprocessing"
        )

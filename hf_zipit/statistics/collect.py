"""Statistics of the models' activations, per space and task, in one pass over the data.

All models see the same batches. Nothing is gathered: each process sums over its own batches, and one reduction follows.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.data.batches import Passes
from hf_zipit.errors import DataError
from hf_zipit.models.steps import run_steps
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.moments import AnyMoments, Moments, ReferenceMoments
from hf_zipit.statistics.probes import POSITIONS, Reader, tokens_read


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


def collect(
    models: Sequence[nn.Module],
    binding: Binding,
    passes: Passes,
    *,
    spaces: Iterable[str],
    names: Sequence[str],
    compat: bool = False,
) -> dict[str, SpaceStatistics]:
    """Run every batch through every model once and accumulate the moments of the named spaces.

    Args:
        models: in eval mode, on the device of the passes. Hooks are attached for the pass and removed again.
        binding: the spaces of the models, and the steps that run them.
        passes: over the images, one data set for each task; every process takes its share of the batches.
        spaces: names of the spaces to observe; those without probes are left out.
        names: the models' names, for error messages.
        compat: accumulate as the authors' code does, over all positions and tasks together.

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
    with ExitStack() as stack, torch.no_grad():
        own = [{name: space.of(k) for name, space in wanted.items()} for k in range(len(models))]
        positions = None if compat else POSITIONS
        images = sum(map(len, passes.images))
        tokens = {} if compat else {name: tokens_read(sum(one.sizes), images) for name, one in stats.items()}
        readers = [stack.enter_context(Reader(*pair, positions, tokens)) for pair in zip(models, own, strict=True)]
        probed = [probe.module for space in wanted.values() for probe in space.probes]
        runs = [_PartialRun(model, binding, until=probed) for model in models]
        layout = torch.contiguous_format if compat else torch.channels_last
        for pixels, _ in passes("Reading activations"):
            pixels = pixels.to(device, next(models[0].parameters()).dtype, memory_format=layout)
            for run in runs:
                run(pixels)
            for name, statistics in stats.items():
                _accumulate(statistics.moments, [reader.pop(name) for reader in readers])
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


def _accumulate(moments: AnyMoments, features: list[list[Tensor]]) -> None:
    """Add one batch: `features[model][probe]` has shape `(B, P, size)`."""
    for values in zip(*features, strict=True):
        moments.update(torch.cat(values, dim=-1))  # (B, P, sum(sizes))


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

"""How long a merge takes for all tasks, beside its parents."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.data.batches import make_accelerator
from hf_zipit.evaluation.results import Result
from hf_zipit.running import device_of, working_copy
from hf_zipit.sources.source import Source

BATCHES = (1, 32)  # images per forward pass
ROUNDS = 7  # forward passes of every model, of which the median counts
ENSEMBLE = "ensemble"


def with_latency(
    rows: Sequence[Result],
    merged: Merged,
    parents: Sequence[Source],
    size: Sequence[int],
    device: str | None = None,
) -> list[Result]:
    """The results of an evaluation, with the milliseconds that each model takes for a batch of images in float32.

    The ensemble takes as long as all parents, one after another.

    Args:
        rows: results of the merge, and of those parents.
        merged: the merge.
        parents: its parents, in task order.
        size: (channels, height, width) of an image.
        device: where to run; by default, a GPU if one is available.
    """
    place = device_of(device, make_accelerator().device)
    models: dict[str, nn.Module] = {"merged": merged}
    alone = [one for parent in parents for one in parent.alone()]
    models |= {f"parent:{task}": one.model for task, one in zip(merged.config.tasks, alone, strict=False)}
    runs = {name: working_copy(model, place).float() for name, model in models.items()}
    found: dict[str, dict[str, float]] = {row.model: {} for row in rows}
    for batch in BATCHES:
        times = latencies(runs, torch.zeros(batch, *size, device=place))
        times[ENSEMBLE] = sum(seconds for name, seconds in times.items() if name != "merged")
        for name, mine in found.items():
            if name in times:
                mine[str(batch)] = round(1000 * times[name], 3)
    return [replace(row, latency=found[row.model]) for row in rows]


@torch.inference_mode()
def latencies(
    models: Mapping[str, Callable[[Tensor], object]], pixels: Tensor, rounds: int = ROUNDS
) -> dict[str, float]:
    """Median seconds of a forward pass of each model. They take turns, so that all meet the same load.

    Args:
        models: by name, on the device of the pixels.
        pixels: `(B, channels, H, W)`.
        rounds: forward passes of each model, after one that does not count.
    """
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in models}
    for number in range(1 + rounds):
        for name, model in models.items():
            _wait(pixels.device)
            start = time.perf_counter()
            model(pixels)
            _wait(pixels.device)
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: median(mine) for name, mine in times.items()}


def _wait(device: torch.device) -> None:
    """Wait until a device has computed everything."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

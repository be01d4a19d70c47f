"""Re-estimate batch norms: a merge changes what they read, so the parents' running statistics no longer fit."""

from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.data.batches import Passes
from hf_zipit.errors import DataError

BLOCK = 2**18  # values that are summed at a time, to stay in the cache of a core


def batchnorm(merge: MergeState) -> None:
    """Re-estimate the running statistics of every batch norm of trunk and heads.

    Source: Jordan et al. (2022), REPAIR; ZipIt!, appendix A.
    """
    renew_norms(merge.model, merge.passes)


@torch.no_grad()
def renew_norms(model: nn.Module, passes: Passes) -> bool:
    """Re-estimate the batch norms of a model in place, in one pass over the images.

    The images are divided into groups of almost equal size, whatever the batch size (see `Passes.groups`). While the
    pass runs, each norm normalises a group by the group's own statistics. Afterwards its running mean and variance are
    those of everything that it has read, so that every image weighs the same. Everything but the norms stays in eval
    mode.

    Returns:
        Whether the model has batch norms.

    Raises:
        DataError: a norm has read a single value per channel, which has no variance.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        return False
    model.eval()
    read = [_Read(norm) for norm in norms]
    model.to(memory_format=torch.channels_last)
    dtype = next(model.parameters()).dtype
    with ExitStack() as stack:
        for one in read:
            stack.callback(one.norm.register_forward_pre_hook(one.add).remove)
        for pixels, _ in passes.groups("Calibrating"):
            model(pixels.to(passes.device, dtype, memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    for one in read:
        one.write(passes.accelerator)
    return True


class _Read:
    """What a batch norm reads during a pass.

    Attributes:
        norm: the norm, in eval mode. Before it runs, it gets the statistics of the group that it is about to read.
        runs: how often it has run.
        count: values per channel.
        mean: of all values, `(C,)`, in double precision.
        squares: the sum of squared distances from the mean, `(C,)`.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        self.norm = norm
        running = norm.get_buffer("running_mean")
        self.runs = torch.zeros((), dtype=torch.float64, device=running.device)
        self.count = torch.zeros_like(self.runs)
        self.mean = torch.zeros_like(running, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)

    def add(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        """A hook that adds what the norm is about to read, and lets it normalise by the statistics of this group."""
        mean, variance, count = moments_of(args[0])
        norm.get_buffer("running_mean").copy_(mean)
        norm.get_buffer("running_var").copy_(variance)
        step = mean - self.mean
        total = self.count + count
        self.mean += step * (count / total)
        self.squares += variance * count + step.square() * (self.count * count / total)
        self.count = total
        self.runs += 1

    def write(self, accelerator: Accelerator) -> None:
        """Set the running statistics to those of all values that all processes have read.

        Raises:
            DataError: it was a single value per channel.
        """

        def total(value: Tensor) -> Tensor:
            return value if accelerator.num_processes == 1 else accelerator.reduce(value, "sum")

        count = total(self.count.clone())
        if not count:
            return
        if count == 1:
            raise DataError(
                "the images give a batch norm one value per channel, which has no variance; use two or more images, or "
                "calibrate none"
            )
        mean = total(self.mean * self.count) / count
        squares = total(self.squares + self.count * (self.mean - mean).square())
        self.norm.get_buffer("running_mean").copy_(mean)
        self.norm.get_buffer("running_var").copy_(squares / (count - 1))
        self.norm.get_buffer("num_batches_tracked").copy_(total(self.runs.clone()))


def moments_of(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of every channel, `(C,)` in float64, and the number of values in each.

    On a CPU, where `torch.var_mean` takes longer than a convolution, the values are summed block by block, as distances
    from the mean of the first block.

    Args:
        values: `(B, C, ...)`.
    """
    rows = values.movedim(1, -1).flatten(0, -2)
    if values.device.type != "cpu":
        variance, mean = torch.var_mean(rows, 0, correction=0)
        return mean.double(), variance.double(), len(rows)
    blocks = torch.split(rows, max(1, BLOCK // rows.shape[1]))
    near = blocks[0].mean(0)
    sums = near.new_zeros(2, len(near), dtype=torch.float64)
    for block in blocks:
        distance = block - near
        sums[0] += distance.sum(0)
        sums[1] += distance.square_().sum(0)
    mean, square = sums / len(rows)
    return near + mean, (square - mean.square()).clamp(min=0), len(rows)

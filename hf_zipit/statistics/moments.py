"""Moments of a set of units: count, mean and centred second moment.

They are combined by the pairwise update of Chan, Golub and LeVeque (1979). No variance is ever the difference of two
large numbers, and the moments of disjoint parts of the data give those of the whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

STRIP = 512  # rows of a second moment that are computed together
WIDE = 4096  # with more units than this, second moments are added up in float32


@dataclass
class Moments:
    """The moments of one space, all models' units stacked.

    The centred second moment is the sum of `(x - mean) (x - mean)^T`. It is symmetric, so only its upper triangle is
    kept: `STRIP` rows at a time, each from its diagonal block on. Products of a batch are computed in the precision of
    the activations, float32 at least, around the mean of the batch. They are added up in float64, or in float32 for
    spaces of more than `WIDE` units, where the matrices fill the memory.

    Attributes:
        count: the number of samples.
        mean: `(n,)`, float64.
        upper: the strips of the upper triangle, one after the other.

    >>> moments = Moments.empty(1)
    >>> moments.update(torch.tensor([[1.0], [3.0]]))
    >>> moments.count, moments.mean.item(), moments.covariance.item()
    (2, 2.0, 1.0)
    """

    count: int
    mean: Tensor
    upper: Tensor

    @classmethod
    def empty(cls, n: int, device: torch.device | str = "cpu") -> "Moments":
        """The moments of no samples of n units."""
        mean = torch.zeros(n, dtype=torch.float64, device=device)
        return cls(0, mean, torch.zeros(packed_size(n), dtype=precision(n), device=device))

    @property
    def scatter(self) -> Tensor:
        """The centred second moment, `(n, n)`."""
        out = self.upper.new_empty(len(self.mean), len(self.mean))
        for start, strip in self._strips():
            end = start + len(strip)
            out[start:end, start:] = strip
            _mirror(out, start, end)
        return out

    @property
    def covariance(self) -> Tensor:
        """The biased covariance, `(n, n)`."""
        return self.scatter.div_(max(self.count, 1))

    @property
    def variance(self) -> Tensor:
        """The biased variance of every unit, `(n,)`."""
        return torch.cat([strip.diagonal() for _, strip in self._strips()]) / max(self.count, 1)

    def scaled(self, scale: Tensor) -> Tensor:
        """The covariance times `scale (n,)` along both axes, within [-1, 1], `(n, n)` in float32."""
        n = len(self.mean)
        out = torch.empty(n, n, device=self.mean.device)
        scale = scale / max(self.count, 1) ** 0.5
        for start, strip in self._strips():
            end = start + len(strip)
            values = (strip * scale[start:end, None]).mul_(scale[start:]).clamp_(-1, 1).float()
            out[start:end, start:] = values
            _mirror(out, start, end)
        return out

    def update(self, values: Tensor) -> None:
        """Add samples of shape `(..., n)`."""
        samples = values.flatten(0, -2)
        samples = samples.to(self.mean.device, torch.promote_types(samples.dtype, torch.float32))  # (T, n)
        near = samples.mean(0)
        rest = samples - near
        left = rest.mean(0)  # what rounding has left of the mean
        shift, weight = self._move(len(samples), near.double() + left.double())
        shift = shift.to(rest)
        for start, strip in self._strips():
            mine = slice(start, start + len(strip))
            product = rest[:, mine].T @ rest[:, start:]
            product.addr_(left[mine], left[start:], alpha=-len(samples))
            strip += product.addr_(shift[mine], shift[start:], alpha=weight)

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the moments of this process by those of all processes."""
        if accelerator.num_processes == 1:
            return
        device = accelerator.device
        count = torch.tensor([self.count], dtype=torch.float64, device=device)
        total = accelerator.reduce(count.clone(), "sum")
        mean = (accelerator.reduce(self.mean.to(device) * count, "sum") / total.clamp(min=1)).to(self.mean.device)
        self._spread(self.mean - mean, self.count)
        self.count, self.mean = int(total.item()), mean
        self.upper = accelerator.reduce(self.upper.to(device), "sum").to(self.mean.device)

    def _move(self, count: int, mean: Tensor) -> tuple[Tensor, float]:
        """Take `count` more samples with this mean into count and mean.

        Returns:
            A vector `(n,)` and a weight: the second moment grows by the weight times the vector's outer product.
        """
        total = self.count + count
        shift = mean - self.mean
        share = count / max(total, 1)
        weight = self.count * share
        self.mean = self.mean + shift * share
        self.count = total
        return shift, weight

    def _spread(self, shift: Tensor, weight: float) -> None:
        """Add `weight` times the outer product of `shift (n,)` to the second moment."""
        shift = shift.to(self.upper)
        for start, strip in self._strips():
            strip.addr_(shift[start : start + len(strip)], shift[start:], alpha=weight)

    def _strips(self) -> Iterator[tuple[int, Tensor]]:
        """The first row of every strip, and the strip as a view, `(rows, n - first)`."""
        n = len(self.mean)
        done = 0
        for start in range(0, n, STRIP):
            shape = (min(STRIP, n - start), n - start)
            yield start, self.upper[done : done + shape[0] * shape[1]].view(shape)
            done += shape[0] * shape[1]


def _mirror(out: Tensor, start: int, end: int) -> None:
    """Make some columns of a matrix those rows that they mirror, of which the upper triangle counts; in place."""
    block = out[start:end, start:end]
    block.copy_(block.triu() + block.triu(1).T)
    out[end:, start:end] = out[start:end, end:].T


def moment_bytes(n: int) -> int:
    """Bytes of the second moment of n units."""
    return packed_size(n) * precision(n).itemsize


def precision(n: int) -> torch.dtype:
    """What the second moment of n units is added up in."""
    return torch.float64 if n <= WIDE else torch.float32


def packed_size(n: int) -> int:
    """How many numbers the upper triangle of n units takes."""
    return sum(min(STRIP, n - start) * (n - start) for start in range(0, n, STRIP))


@dataclass
class ReferenceMoments:
    """The moments as the authors' code computes them: in float32, uncentred, by batch.

    Only `compat=True` uses them: there rounding decides between equal candidates.

    Attributes:
        count: the number of images.
        mean: sum over the batches of the batch mean times the number of images, `(n,)`.
        second: the same of the uncentred second moment, `(n, n)`.
    """

    count: int
    mean: Tensor
    second: Tensor

    @classmethod
    def empty(cls, n: int, device: torch.device | str = "cpu") -> "ReferenceMoments":
        """The moments of no samples of n units."""
        return cls(0, torch.zeros(n, device=device), torch.zeros(n, n, device=device))

    @property
    def covariance(self) -> Tensor:
        """The biased covariance, `(n, n)`."""
        mean = self.mean / max(self.count, 1)
        return self.second / max(self.count, 1) - torch.outer(mean, mean)

    @property
    def variance(self) -> Tensor:
        """The biased variance of every unit, `(n,)`."""
        return self.covariance.diagonal()

    def update(self, values: Tensor) -> None:
        """Add a batch `(B, P, n)`."""
        features = values.flatten(0, -2).float().T.contiguous()  # (n, T)
        self.mean += features.mean(1) * len(values)
        self.second += (features @ features.T) / features.shape[1] * len(values)
        self.count += len(values)

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the moments of this process by those of all processes."""
        count = accelerator.reduce(torch.tensor([float(self.count)], device=accelerator.device), "sum")
        self.mean = accelerator.reduce(self.mean.to(accelerator.device), "sum").to(self.mean)
        self.second = accelerator.reduce(self.second.to(accelerator.device), "sum").to(self.second)
        self.count = int(count.item())


AnyMoments = Moments | ReferenceMoments


def add_gram(out: Tensor, x: Tensor) -> None:
    """`out (n, n) += x^T x` for samples `x (T, n)`: the lower triangle is that of the upper one."""
    for start in range(0, x.shape[1], STRIP):
        end = min(start + STRIP, x.shape[1])
        product = x[:, start:end].T @ x[:, start:]
        out[start:end, start:] += product
        out[end:, start:end] += product[:, end - start :].T

"""Moments of a set of units: count, mean and centred second moment, in float64.

They are combined by the pairwise update of Chan, Golub and LeVeque (1979). No variance is ever the difference of two
large numbers, and the moments of disjoint parts of the data add up to those of the whole.
"""

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class Moments:
    """The moments of one space, all models' units stacked.

    Attributes:
        count: the number of samples.
        mean: `(n,)`, float64.
        scatter: the centred second moment: the sum of `(x - mean) (x - mean)^T`, `(n, n)`.

    >>> moments = Moments.empty(1)
    >>> moments.update(torch.tensor([[1.0], [3.0]]))
    >>> moments.count, moments.mean.item(), moments.covariance.item()
    (2, 2.0, 1.0)
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, n: int, device: torch.device | str = "cpu") -> "Moments":
        """The moments of no samples of n units."""
        zeros = torch.zeros(n, n, dtype=torch.float64, device=device)
        return cls(0, zeros.new_zeros(n), zeros)

    @property
    def covariance(self) -> Tensor:
        """The biased covariance, `(n, n)`."""
        return self.scatter / max(self.count, 1)

    def update(self, values: Tensor) -> None:
        """Add samples of shape `(..., n)`."""
        samples = values.flatten(0, -2).to(self.mean)  # (T, n), float64
        mean = samples.mean(0)
        self._combine(len(samples), mean, None)
        _add_gram(self.scatter, samples - mean)

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets of samples together."""
        out = Moments(self.count, self.mean, self.scatter.clone())
        out._combine(other.count, other.mean, other.scatter)
        return out

    def _combine(self, count: int, mean: Tensor, scatter: Tensor | None) -> None:
        """Add the moments of `count` other samples; `scatter` may be added later."""
        total = self.count + count
        if not total:
            return
        shift = mean - self.mean
        if self.count:
            self.scatter.addr_(shift, shift, alpha=self.count * count / total)
        if scatter is not None:
            self.scatter += scatter
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the moments of this process by those of all processes."""
        if accelerator.num_processes == 1:
            return
        device = accelerator.device
        count = torch.tensor([self.count], dtype=torch.float64, device=device)
        total = accelerator.reduce(count.clone(), "sum")
        mean = accelerator.reduce(self.mean.to(device) * count, "sum") / total.clamp(min=1)
        shift = self.mean.to(device) - mean
        scatter = self.scatter.to(device).addr(shift, shift, alpha=self.count)
        self.count, self.mean = int(total.item()), mean.to(self.mean.device)
        self.scatter = accelerator.reduce(scatter, "sum").to(self.mean.device)


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


def _add_gram(out: Tensor, x: Tensor) -> None:
    """`out (n, n) += x^T x` for samples `x (T, n)`; off-diagonal blocks are computed once, by symmetry."""
    n = x.shape[1]
    if n <= 256:
        out.addmm_(x.T, x)
        return
    half = n // 2
    left, right = x[:, :half], x[:, half:]
    _add_gram(out[:half, :half], left)
    _add_gram(out[half:, half:], right)
    cross = left.T @ right
    out[:half, half:] += cross
    out[half:, :half] += cross.T

"""Ridge regression from the samples themselves: the same solution where there are fewer of them than inputs."""

from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass
class Samples:
    """`e ~ W x + b` as in `NormalEquations`, from samples `x (T, G, d)` and `e (T, G, m)` that are kept.

    The dual of the regression is solved: `W = P + (E - X P)^T (X X^T + ridge)^-1 X` needs `(T, T)` products in place of
    `(d, d)` ones.

    >>> samples = Samples(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[3.0]], [[5.0]]]))
    >>> [round(value.item(), 3) for value in samples.solve(1e-9)]
    [2.0, 1.0]
    """

    x: Tensor
    e: Tensor

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> "Samples":
        """No sample."""
        return cls(torch.zeros(0, groups, inputs, device=device), torch.zeros(0, groups, outputs, device=device))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.x)

    def update(self, x: Tensor, e: Tensor) -> None:
        """Add samples."""
        self.x, self.e = torch.cat([self.x, x.to(self.x)]), torch.cat([self.e, e.to(self.e)])

    def __add__(self, other: "Samples") -> "Samples":
        """Both sets of samples together."""
        return Samples(torch.cat([self.x, other.x]), torch.cat([self.e, other.e]))

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the samples of this process by those of all processes."""
        if accelerator.num_processes == 1:
            return
        counts = accelerator.gather(torch.tensor([self.count], device=accelerator.device)).tolist()
        for name in ("x", "e"):
            mine: Tensor = getattr(self, name).to(accelerator.device)
            padded = mine.new_zeros(max(counts), *mine.shape[1:])
            padded[: len(mine)] = mine
            parts = accelerator.gather(padded).split(max(counts)) if max(counts) else [mine]
            kept = [part[:count] for part, count in zip(parts, counts, strict=False)]
            setattr(self, name, torch.cat(kept).to(self.x.device))

    def of(self, outputs: slice) -> "Samples":
        """The same samples with some of the outputs."""
        some = Samples(self.x, self.e[..., outputs])
        some._products = self._products
        return some

    def moments(self, weight: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and variance of `weight (G, m, k)` times the inputs from `start` on, `(G, m)` each."""
        out = self._x[..., start : start + weight.shape[-1]] @ weight.mT  # (G, T, m)
        return out.mean(1), out.var(1, correction=0)

    def solve(self, ridge: float, prior: Tensor | None = None, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """`W (G, m, d)` and `b (G, m)`, as `NormalEquations.solve` gives them."""
        x, e = self._x, self.e.double().transpose(0, 1)  # (G, T, d), (G, T, m)
        mean_x, mean_e = (value.mean(1, keepdim=True) * intercept for value in (x, e))
        rest = e - mean_e if prior is None else e - mean_e - (x - mean_x) @ prior.mT
        products = self._products[intercept]
        unit = products.diagonal(dim1=1, dim2=2).sum(1) / x.shape[2]
        alive = unit > 1e-12 * self.count * x.square().mean((1, 2))
        penalty = torch.where(alive, ridge * unit, 1.0)[:, None, None]
        system = products + penalty * torch.eye(self.count, dtype=x.dtype, device=x.device)
        shares = torch.cholesky_solve(rest, torch.linalg.cholesky(system)) * alive[:, None, None]
        weight = shares.mT @ (x - mean_x)
        weight = weight if prior is None else weight.add_(prior)
        return weight, mean_e[:, 0] - (weight @ mean_x.mT)[..., 0]

    def error(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Mean squared error of a fit for every output, `(G, m)`; of no fit, of `e` itself."""
        e = self.e.double().transpose(0, 1)
        if weight is not None and bias is not None:
            e = e - self._x @ weight.mT - bias[:, None]
        return e.square().sum(1) / max(self.count, 1)

    @property
    def _x(self) -> Tensor:
        return self.x.double().transpose(0, 1)

    @cached_property
    def _products(self) -> dict[bool, Tensor]:
        """The inner products of the samples with and without their mean taken off, `(G, T, T)`."""
        x = self._x
        centred = x - x.mean(1, keepdim=True)
        return {True: centred @ centred.mT, False: x @ x.mT}

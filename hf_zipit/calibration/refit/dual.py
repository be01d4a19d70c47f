"""Ridge regression in the dual, from stored samples: the same solution, faster with fewer samples than inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.calibration.refit.normal_equations import Solution
from hf_zipit.statistics.moments import add_gram


@dataclass
class Samples:
    """Stored samples of the regression `e ~ W x + b`, with the interface of `NormalEquations`.

    The dual is solved: `W = P + (E - X P^T)^T (X X^T + ridge)^-1 X` needs `(T, T)` products instead of `(d, d)` ones.

    Attributes:
        x: inputs, `(T, G, d)` for T samples and G groups.
        e: outputs, `(T, G, m)`.

    >>> samples = Samples(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[3.0]], [[5.0]]]))
    >>> [round(value.item(), 3) for value in samples.solve(1e-9)]
    [2.0, 1.0]
    """

    x: Tensor
    e: Tensor

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> "Samples":
        """No samples."""
        return cls(torch.zeros(0, groups, inputs, device=device), torch.zeros(0, groups, outputs, device=device))

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self.x)

    def update(self, x: Tensor, e: Tensor) -> None:
        """Add samples: `x (T, G, d)`, `e (T, G, m)`."""
        self.x = torch.cat([self.x, x.to(self.x)])
        self.e = torch.cat([self.e, e.to(self.e)])

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
        """Mean and variance of `weight (G, m, k)` times the k inputs from `start` on, `(G, m)` each."""
        out = (self._x[..., start : start + weight.shape[-1]] @ weight.to(self.x).mT).double()  # (G, T, m)
        return out.mean(1), out.var(1, correction=0)

    def solve(self, ridge: float, prior: Tensor | None = None, intercept: bool = True) -> Solution:
        """`W (G, m, d)` and `b (G, m)`; arguments and result are those of `NormalEquations.solve`."""
        return self.solve_all(ridge, [prior], intercept)[0]

    def solve_all(self, ridge: float, priors: Sequence[Tensor | None], intercept: bool = True) -> list[Solution]:
        """The solution for each of several priors; arguments as for `solve`."""
        x, products, square = self._centred(intercept)  # (G, T, d), (G, T, T), (G,)
        x = x.double()
        e = self.e.double().transpose(0, 1)  # (G, T, m)
        mean_e = e.mean(1, keepdim=True) * intercept
        unit = products.diagonal(dim1=1, dim2=2).sum(1) / x.shape[2]
        alive = unit > 1e-12 * self.count * square
        penalty = torch.where(alive, ridge * unit, 1.0)[:, None]
        system = products.clone()
        system.diagonal(dim1=1, dim2=2).add_(penalty)
        rests = [e - mean_e if prior is None else e - mean_e - x @ prior.mT for prior in priors]
        shares = torch.cholesky_solve(torch.cat(rests, -1), torch.linalg.cholesky(system))
        shares *= alive[:, None, None]
        mean_x = self._x.double().mean(1, keepdim=True) * intercept
        found = []
        for prior, mine in zip(priors, torch.split(shares, e.shape[-1], -1), strict=True):
            weight = mine.mT @ x
            weight = weight if prior is None else weight.add_(prior)
            found.append((weight, mean_e[:, 0] - (weight @ mean_x.mT)[..., 0]))
        return found

    def error(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Mean squared error of every output, `(G, m)`. Without weight and bias the prediction is 0."""
        e = self.e.transpose(0, 1)
        if weight is not None and bias is not None:
            e = e - self._x @ weight.to(self.x).mT - bias.to(self.x)[:, None]
        return e.double().square().sum(1) / max(self.count, 1)

    @property
    def _x(self) -> Tensor:
        """The inputs, `(G, T, d)`."""
        return self.x.transpose(0, 1)

    def _centred(self, intercept: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs `(G, T, d)`, less their mean with an intercept; their inner products; their mean square."""
        if intercept not in self._products:
            x = self._x
            x = x - x.mean(1, keepdim=True) if intercept else x
            products = torch.zeros(len(x), self.count, self.count, dtype=torch.float64, device=x.device)
            for out, mine in zip(products, x, strict=True):
                add_gram(out, mine.T)
            self._products[intercept] = x, products, self._x.double().square().mean((1, 2))
        return self._products[intercept]

    @cached_property
    def _products(self) -> dict[bool, tuple[Tensor, Tensor, Tensor]]:
        """What `_centred` has computed."""
        return {}

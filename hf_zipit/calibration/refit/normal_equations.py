"""Streaming ridge regression: normal equations, summed in float64 over batches and processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.statistics.moments import add_gram

DOUBLE = 256  # up to so many inputs products are computed in float64, beyond it in float32
Solution = tuple[Tensor, Tensor]  # weights `(G, m, d)`, constants `(G, m)`


@dataclass
class NormalEquations:
    """The centred normal equations of `e ~ W x + b`, for G independent groups of d inputs and m outputs.

    They are combined as `statistics.moments.Moments` are, so those of disjoint parts of the data add up to those of
    the whole.

    Attributes:
        count: the number of samples.
        x: mean of the inputs, `(G, d)`.
        e: mean of the outputs, `(G, m)`.
        xx: centred second moment of the inputs, `(G, d, d)`.
        xe: centred second moment of inputs and outputs, `(G, d, m)`.
        ee: the diagonal of the outputs' centred second moment, `(G, m)`.

    >>> equations = NormalEquations.empty(1, 1, 1)
    >>> equations.update(torch.tensor([[[0.0]], [[1.0]], [[2.0]]]), torch.tensor([[[1.0]], [[3.0]], [[5.0]]]))
    >>> [round(value.item(), 3) for value in equations.solve(0)]
    [2.0, 1.0]
    """

    count: float
    x: Tensor
    e: Tensor
    xx: Tensor
    xe: Tensor
    ee: Tensor

    @classmethod
    def empty(cls, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> "NormalEquations":
        """The equations of no samples."""
        zeros = torch.zeros(groups, inputs, dtype=torch.float64, device=device)
        return cls(
            0,
            zeros,
            zeros.new_zeros(groups, outputs),
            zeros.new_zeros(groups, inputs, inputs),
            zeros.new_zeros(groups, inputs, outputs),
            zeros.new_zeros(groups, outputs),
        )

    def update(self, x: Tensor, e: Tensor) -> None:
        """Add samples: `x (T, G, d)`, `e (T, G, m)`. Products are computed around their means."""
        if not len(x):
            return
        dtype = torch.float64 if self.x.shape[1] <= DOUBLE else torch.promote_types(x.dtype, torch.float32)
        x, near_x, left_x = _centred(x.to(self.x.device, dtype).transpose(0, 1))  # (G, T, d)
        e, near_e, left_e = _centred(e.to(self.x.device, dtype).transpose(0, 1))  # (G, T, m)
        self._shift(x.shape[1], near_x + left_x, near_e + left_e)
        self._spread(left_x, left_e, -x.shape[1])
        for xx, group in zip(self.xx, x, strict=True) if len(x) == 1 else ():
            add_gram(xx, group)
        if len(x) > 1:
            self.xx += x.mT @ x
        self.xe += x.mT @ e
        self.ee += e.square().sum(1)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """The equations of both sets of samples together."""
        out = NormalEquations(self.count, self.x, self.e, self.xx.clone(), self.xe.clone(), self.ee.clone())
        out._shift(other.count, other.x, other.e)
        out.xx += other.xx
        out.xe += other.xe
        out.ee += other.ee
        return out

    def _shift(self, count: float, x: Tensor, e: Tensor) -> None:
        """Move the means as `count` more samples with means `x` and `e` do; their second moments are not added."""
        total = self.count + count
        if not total:
            return
        dx = x - self.x
        de = e - self.e
        share = count / total
        self._spread(dx, de, self.count * share)
        self.x = self.x + dx * share
        self.e = self.e + de * share
        self.count = total

    def _spread(self, dx: Tensor, de: Tensor, weight: float) -> None:
        """Add the second moments of a shift `dx (G, d)`, `de (G, m)` of the means."""
        self.xx.baddbmm_(weight * dx[:, :, None], dx[:, None])
        self.xe.baddbmm_(weight * dx[:, :, None], de[:, None])
        self.ee += weight * de.square()

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the equations of this process by those of all processes."""
        if accelerator.num_processes == 1:
            return
        device = accelerator.device
        mine = torch.tensor([self.count], dtype=torch.float64, device=device)
        total = accelerator.reduce(mine.clone(), "sum")
        means = []
        for mean in (self.x, self.e):
            means.append((accelerator.reduce(mean.to(device) * mine, "sum") / total.clamp(min=1)).to(mean.device))
        self._spread(means[0] - self.x, means[1] - self.e, self.count)
        self.x, self.e = means
        self.count = float(total.item())
        for name in ("xx", "xe", "ee"):
            value = getattr(self, name)
            setattr(self, name, accelerator.reduce(value.to(device), "sum").to(value.device))

    def of(self, outputs: slice) -> "NormalEquations":
        """The equations of some of the outputs."""
        return replace(self, e=self.e[:, outputs], xe=self.xe[..., outputs], ee=self.ee[:, outputs])

    def moments(self, weight: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and variance of `weight (G, m, k)` times the k inputs from `start` on, `(G, m)` each."""
        mine = slice(start, start + weight.shape[-1])
        mean = (weight @ self.x[:, mine, None])[..., 0]
        variance = ((weight @ self.xx[:, mine, mine]) * weight).sum(-1) / max(self.count, 1)
        return mean, variance.clamp(min=0)

    def solve(self, ridge: float, prior: Tensor | None = None, intercept: bool = True) -> Solution:
        """`W (G, m, d)` and `b (G, m)` that minimise `|e - W x - b|^2 + ridge * unit * |W - prior|^2`.

        Groups whose inputs are constant keep the prior.

        Args:
            ridge: the penalty, in units of the mean second moment of an input.
            prior: what the ridge pulls towards, `(G, m, d)`; `None` is zero.
            intercept: whether there is a `b`. Without one `b` is 0, and moments about zero replace the centred ones.
        """
        return self.solve_all(ridge, [prior], intercept)[0]

    def solve_all(self, ridge: float, priors: Sequence[Tensor | None], intercept: bool = True) -> list[Solution]:
        """The solution for each of several priors; arguments as for `solve`."""
        xx, xe = self.xx, self.xe
        if not intercept:
            xx = xx + self.count * self.x[:, :, None] * self.x[:, None]
            xe = xe + self.count * self.x[:, :, None] * self.e[:, None]
        unit = xx.diagonal(dim1=1, dim2=2).mean(1)
        alive = unit > 1e-12 * self.count * self.x.square().mean(1)
        penalty = torch.where(alive, ridge * unit, 1.0)[:, None, None]
        system = xx * alive[:, None, None]
        system.diagonal(dim1=1, dim2=2).add_(penalty[:, 0])
        factor = torch.linalg.cholesky(system)
        del system
        wanted = xe * alive[:, None, None]
        sides = [wanted if prior is None else wanted + penalty * prior.mT for prior in priors]
        found = []
        for side in torch.split(torch.cholesky_solve(torch.cat(sides, -1), factor), xe.shape[-1], -1):
            weight = side.mT
            shift = self.e - (weight @ self.x[:, :, None])[:, :, 0] if intercept else torch.zeros_like(self.e)
            found.append((weight, shift))
        return found

    def error(self, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Mean squared error of every output, `(G, m)`. Without weight and bias the prediction is 0."""
        if weight is None or bias is None:
            return self.ee / max(self.count, 1) + self.e.square()
        rest = self.e - (weight @ self.x[:, :, None])[:, :, 0] - bias
        explained = 2 * (weight * self.xe.mT).sum(-1) - ((weight @ self.xx) * weight).sum(-1)
        return (self.ee - explained) / max(self.count, 1) + rest.square()


def _centred(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples `(G, T, n)` without their mean, the mean, and what rounding has left of it, `(G, n)` in float64 each."""
    near = values.mean(1)
    rest = values - near[:, None]
    return rest, near.double(), rest.mean(1).double()


def fit_affine(x: Tensor, y: Tensor, prior: Tensor | None = None, ridge: float = 1e-2) -> Solution:
    """`W (m, d)` and `b (m,)` that minimise `|y - W x - b|^2 + ridge * unit * |W - prior|^2`, in closed form.

    It is what a refit solves for one layer, without the choice of the ridge on held-out images.

    Args:
        x: What the layer reads, `(T, d)`.
        y: What it should put out, `(T, m)`.
        prior: What the ridge pulls towards, such as the merged weights, `(m, d)`; `None` is zero.
        ridge: The penalty, in units of the mean second moment of an input.

    Returns:
        Weights and constants, in the dtype of `x`.

    >>> weight, bias = fit_affine(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[1.0], [3.0], [5.0]]), ridge=0)
    >>> round(weight.item(), 3), round(bias.item(), 3)
    (2.0, 1.0)
    """
    equations = NormalEquations.empty(1, x.shape[1], y.shape[1], x.device)
    equations.update(x[:, None], y[:, None])
    weight, bias = equations.solve(ridge, None if prior is None else prior.to(equations.x)[None])
    return weight[0].to(x.dtype), bias[0].to(x.dtype)

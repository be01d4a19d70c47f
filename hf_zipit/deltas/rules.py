"""Rules that treat every entry of the differences by itself: task arithmetic, TIES and DARE.

A rule takes one mapping of tensors per model, its differences to the base, and returns the merged difference. The
merged model is the base plus `scale` times that.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]  # tensors by name
Deltas = Sequence[State]  # one mapping per model


def mean(states: Deltas) -> dict[str, Tensor]:
    """The mean of every tensor.

    Args:
        states: one mapping per model, with the names of the first.

    >>> mean([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])["w"]
    tensor([1.5000])
    """
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def task_arithmetic(deltas: Deltas) -> dict[str, Tensor]:
    """The sum of the differences (Ilharco et al., 2023, "Editing models with task arithmetic").

    With `scale` 1/N this is plain averaging.

    Args:
        deltas: one mapping per model, tensors of any shape.

    >>> task_arithmetic([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])["w"]
    tensor([3.])
    """
    return {name: torch.stack([delta[name] for delta in deltas]).sum(0) for name in deltas[0]}


def ties(deltas: Deltas, density: float) -> dict[str, Tensor]:
    """Keep the largest entries of each model, elect a sign, and average what agrees with it (Yadav et al., 2023).

    The largest are taken over all tensors of a model together. An entry that no model keeps, or whose sum is zero,
    becomes zero.

    Args:
        deltas: one mapping per model, tensors of any shape.
        density: share of the entries that is kept, above 0 and at most 1.

    >>> ties([{"w": torch.tensor([4.0, 1.0])}, {"w": torch.tensor([-2.0, 3.0])}], 1.0)["w"]
    tensor([4., 2.])
    """
    kept = [_largest(delta, density) for delta in deltas]
    return {name: _agreeing(torch.stack([delta[name] for delta in kept])) for name in deltas[0]}


def dare(deltas: Deltas, density: float, seed: int) -> dict[str, Tensor]:
    """Drop entries at random, scale up the others, and sum (Yu et al., 2024, "Language models are super Mario").

    Args:
        deltas: one mapping per model, tensors of any shape.
        density: share of the entries that is kept, above 0 and at most 1; they are divided by it.
        seed: of the draw. It does not depend on the order of the models.

    >>> dare([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}], density=1.0, seed=0)["w"]
    tensor([3.])
    """
    return task_arithmetic([_thinned(delta, density, seed) for delta in deltas])


def _largest(delta: State, density: float) -> dict[str, Tensor]:
    """The entries of the largest absolute values, over all tensors; zeros elsewhere."""
    sizes = torch.cat([value.abs().flatten() for value in delta.values()])
    count = max(1, round(density * len(sizes)))
    smallest = sizes.kthvalue(len(sizes) - count + 1).values
    return {name: value * (value.abs() >= smallest) for name, value in delta.items()}


def _agreeing(values: Tensor) -> Tensor:
    """The mean over models, `(N, ...)`, of the entries with the sign of the sum."""
    agrees = (values.sign() == values.sum(0).sign()) & (values != 0)
    return (values * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _thinned(delta: State, density: float, seed: int) -> dict[str, Tensor]:
    """Random entries divided by their share; zeros elsewhere. Models that differ have draws of their own."""
    total = sum(float(value.double().abs().sum()) for value in delta.values())
    generator = torch.Generator().manual_seed((seed + hash(total)) % 2**63)
    draws = {name: torch.rand(value.shape, generator=generator) for name, value in delta.items()}
    return {name: value * (draws[name] < density) / density for name, value in delta.items()}

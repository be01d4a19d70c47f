"""Fingerprints of units from their weights, to tell apart units that the data cannot.

Units that never fire on the data have no statistics, and units that fire at the same single position have equal
ones. Their weights still differ. A fingerprint is a vector of moments of the weights that touch a unit, taken over all
other axes, so permuting any other space does not change it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding, FeatureSpace, Row

MAX_VECTORS = 6  # one-dimensional parameters (biases, norms) per space, smallest first
MAX_KERNELS = 3  # parameters with two or more dimensions per space, smallest first


def fingerprints(states: Sequence[Mapping[str, Tensor]], binding: Binding, space: FeatureSpace) -> Tensor:
    """Fingerprints of all units, standardised over the units of all models.

    Args:
        states: State dicts of the N models.
        binding: Maps each space to slices of parameters.
        space: The space whose n units (per model) to fingerprint.

    Returns:
        `(N * n, features)`, the units of model 0 first; N * n is the sum of the sizes, where they differ.
    """
    chosen = _chosen_rows(states[0], binding.of(0), space.of(0))
    tables = [binding.of(model).table for model in range(len(states))]
    features = []
    for number in chosen:
        rows = [table[number] for table in tables]
        values = _scaled([_by_unit(state[row.parameter], row) for state, row in zip(states, rows, strict=True)])
        single = any(value.shape[1] == 1 for value in values)  # the classifier of one model may have a single class
        features += [torch.cat([value.pow(p).mean(1) for value in values]) for p in ((1,) if single else (1, 2, 3))]
    out = torch.stack(features, 1)  # (N * n, features)
    return (out - out.mean(0)) / out.std(0).clamp(min=1e-12)


def fingerprint_similarity(prints: Tensor) -> Tensor:
    """Similarity `1 / (1 + distance)` of every pair of fingerprints; distance is root mean square over features.

    Args:
        prints: Fingerprints, `(n, features)`.

    Returns:
        `(n, n)` in (0, 1].

    >>> fingerprint_similarity(torch.tensor([[0.0], [0.0], [1.0]]))[0]
    tensor([1.0000, 1.0000, 0.5000])
    """
    distance = torch.cdist(prints, prints, compute_mode="donot_use_mm_for_euclid_dist")
    out: Tensor = 1 / (1 + distance / prints.shape[1] ** 0.5)
    return out


def _by_unit(parameter: Tensor, row: Row) -> Tensor:
    """The weights of each unit, `(n, rest)`."""
    value = parameter.float().movedim(row.axis, 0).narrow(0, row.offset, row.length)
    return value.flatten(1) if value.ndim > 1 else value[:, None]


def _scaled(values: Sequence[Tensor]) -> list[Tensor]:
    """The values times one power of two, so that the largest is about 1 and no power of them overflows."""
    exponents = [torch.frexp(value.abs().max()).exponent for value in values if value.numel()]
    return [value * 2.0 ** -int(max(exponents)) for value in values] if exponents else list(values)


def _chosen_rows(state: Mapping[str, Tensor], binding: Binding, space: FeatureSpace) -> list[int]:
    """The smallest parameters that hold every unit of the space exactly once: vectors first, then kernels.

    Returns:
        The numbers of their rows in the table of the binding.
    """
    numbered = enumerate(binding.table)
    whole = [(i, row) for i, row in numbered if (row.space, row.length) == (space.name, space.size) and not row.local]
    whole.sort(key=lambda found: state[found[1].parameter].numel())
    vectors = [i for i, row in whole if state[row.parameter].ndim == 1]
    kernels = [i for i, row in whole if state[row.parameter].ndim > 1]
    return vectors[:MAX_VECTORS] + kernels[:MAX_KERNELS]

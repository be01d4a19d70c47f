"""Fingerprints of units from weights: what tells units apart that the data cannot.

Units that never fire on the data, or fire on the same single position, have no or equal statistics. Their weights
still differ. A fingerprint is a vector of moments of the weights that touch a unit, over all other axes, so it does
not change when any other space is permuted.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding, FeatureSpace

VECTORS, WEIGHTS = 6, 3  # a space is fingerprinted by this many of its smallest tensors of either kind


def fingerprints(states: Sequence[Mapping[str, Tensor]], binding: Binding, space: FeatureSpace) -> Tensor:
    """One vector for each unit of each model, standardised over all of them: `(N * size, features)`."""
    plain = (r for r in binding.table if r.space == space.name and r.length == space.size and not r.local)
    rows = sorted(plain, key=lambda row: states[0][row.parameter].numel())
    rows = [row for row in rows if states[0][row.parameter].ndim == 1][:VECTORS] + [
        row for row in rows if states[0][row.parameter].ndim > 1
    ][:WEIGHTS]
    parts = []
    for state in states:
        features = []
        for row in rows:
            value = state[row.parameter].float().movedim(row.axis, 0).narrow(0, row.offset, row.length)
            value = value.flatten(1) if value.ndim > 1 else value[:, None]  # (size, rest)
            powers = (1, 2, 3) if value.shape[1] > 1 else (1,)
            features += [value.pow(p).mean(1) for p in powers]
        parts.append(torch.stack(features, 1))
    out = torch.cat(parts)  # (N * size, features)
    return (out - out.mean(0)) / out.std(0).clamp(min=1e-12)


def likeness(prints: Tensor) -> Tensor:
    """`1 / (1 + distance)` of every pair of fingerprints, `(n, n)` in (0, 1].

    >>> likeness(torch.tensor([[0.0], [0.0], [1.0]]))[0]
    tensor([1.0000, 1.0000, 0.5000])
    """
    distance = torch.cdist(prints, prints, compute_mode="donot_use_mm_for_euclid_dist")
    out: Tensor = 1 / (1 + distance / prints.shape[1] ** 0.5)
    return out

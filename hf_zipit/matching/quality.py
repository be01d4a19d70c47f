"""The quality of a match, and an upper bound on the quality of any match."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.transform.match import Match


def agreement(similarity: Tensor, match: Match) -> float:
    """Mean similarity of a unit to the other units of its cluster, averaged over all units.

    A unit alone in its cluster and a dropped unit count 0. Takes O(n^2) time and memory.

    Args:
        similarity: `(n, n)`.
        match: Labels of the n units.

    >>> s = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> round(agreement(s, Match(torch.tensor([0, 0, 1]), (2, 1), 2)), 3)
    0.533
    """
    kept = match.labels >= 0
    labels = match.labels.clamp(min=0)
    values = similarity.detach().cpu().double() * kept[:, None]
    totals = values.new_zeros(match.width, len(values)).index_add_(0, labels, values)  # (m, n)
    mates = (match.counts[labels] - 1).clamp(min=0)
    sums = totals[labels, torch.arange(len(values))] - values.diagonal()
    return float((sums / mates.clamp(min=1) * (kept & (mates > 0))).mean())


def bound(similarity: Tensor) -> float:
    """Upper bound on the `agreement` of any match, by one linear assignment of units to units in O(n^3).

    The mean similarity of a unit to its k mates is an average over k cyclic orders of its cluster. Each cyclic order
    assigns every unit to another one, so no match exceeds the best assignment.

    Args:
        similarity: `(n, n)`.

    >>> round(bound(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])), 3)
    0.533
    """
    values = similarity.detach().cpu().double().numpy().copy()
    np.fill_diagonal(values, 0)  # a unit alone in its cluster counts 0
    rows, columns = linear_sum_assignment(values, maximize=True)
    return float(values[rows, columns].mean())


def optimality_gap(similarity: Tensor, match: Match) -> float:
    """Upper bound on how far a match is from the best `agreement`, as a share of it; 0 if it is proved optimal.

    Args:
        similarity: `(n, n)`.
        match: Labels of the n units.

    >>> s = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> round(optimality_gap(s, Match(torch.tensor([0, 0, 1]), (2, 1), 2)), 6)
    0.0
    """
    best = bound(similarity)
    return max(0.0, 1 - agreement(similarity, match) / best) if best > 0 else 0.0

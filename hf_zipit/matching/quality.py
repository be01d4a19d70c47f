"""How good a match is, and how good any match could be. Tensors only."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.transform.match import Match


def agreement(similarity: Tensor, match: Match) -> float:
    """The mean over all units of a unit's mean similarity to those it is merged with; 0 for a unit left alone.

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
    """The largest `agreement` that any match could have, or more: an assignment of units to units.

    The mean similarity of a unit to its k mates is a mean over the k cyclic orders of its cluster, each of which is
    an assignment of every unit to another one. Cost: one linear assignment of n to n.

    >>> bound(torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]]))
    0.5333333333333333
    """
    values = similarity.detach().cpu().double().numpy().copy()
    np.fill_diagonal(values, 0)  # left alone
    rows, columns = linear_sum_assignment(values, maximize=True)
    return float(values[rows, columns].mean())


def optimality_gap(similarity: Tensor, match: Match) -> float:
    """How far below the best possible `agreement` a match is at most, as a share of it; 0 is proved optimal.

    >>> s = torch.tensor([[1.0, 0.8, 0.1], [0.8, 1.0, 0.3], [0.1, 0.3, 1.0]])
    >>> round(optimality_gap(s, Match(torch.tensor([0, 0, 1]), (2, 1), 2)), 6)
    0.0
    """
    best = bound(similarity)
    return max(0.0, 1 - agreement(similarity, match) / best) if best > 0 else 0.0

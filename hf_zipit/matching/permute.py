"""Matching: a similarity of all models' units -> which merged unit each of them becomes. Tensors only.

A new method is one function `(similarity, sizes, ...) -> Match` and one line in `METHODS` (`methods.py`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.matching.greedy import Labels
from hf_zipit.transform.match import Match, _equal, check_sizes


def permute_match(similarity: Tensor, sizes: Sequence[int], *, compat: bool = False) -> Match:
    """Align the models one-to-one by assignments that maximise the summed similarity (eq. 3).

    Two models: the optimum. More: every model is first aligned to the one that is most alike to all others; then,
    time after time, the model that gains most is aligned anew to the sum of all others, until none gains. That sum
    over all pairs of models never falls, and the result does not depend on the models' order.

    Args:
        similarity: `(n, n)`, units of model 0 first.
        sizes: units per model, all the same.
        compat: align every model to the first one, as the authors' code does.

    >>> permute_match(torch.tensor([[1, 0, 0, 0.9], [0, 1, 0.9, 0], [0, 0.9, 1, 0], [0.9, 0, 0, 1]]), [2, 2]).labels
    tensor([0, 1, 1, 0])
    """
    sizes, _ = check_sizes(similarity, sizes, None)
    width, models = _equal(sizes, "permute"), range(len(sizes))
    values = similarity.detach().cpu().double().numpy().reshape(len(sizes), width, len(sizes), width)
    pairs = {(0, k): _assign(values[0, :, k]) for k in models[1:]}
    score = float(np.mean([values[0, range(width), k, pairs[0, k]].mean() for k in models[1:]]))
    columns = np.stack([np.arange(width), *(pairs[0, k] for k in models[1:])])  # (N, width): model k's unit at place m
    if len(sizes) > 2 and not compat:
        columns = _jointly(values, pairs)
    labels = torch.from_numpy(np.argsort(columns, axis=1).reshape(-1))
    return Match(labels, sizes, width, score)


def _assign(scores: NDArray[np.float64]) -> Labels:
    """The column of every row in the assignment with the largest sum."""
    columns: Labels = linear_sum_assignment(scores, maximize=True)[1]
    return columns


def _jointly(values: NDArray[np.float64], pairs: dict[tuple[int, int], Labels]) -> Labels:
    """Which unit of each model sits at each place, `(N, width)`; the first model's units keep their order."""
    n, width = values.shape[:2]
    rows = np.arange(width)
    for i in range(1, n):
        pairs |= {(i, j): _assign(values[i, :, j]) for j in range(i + 1, n)}
    pairs |= {(j, i): np.argsort(columns) for (i, j), columns in pairs.items()}
    totals = [sum(values[i, rows, j, pairs[i, j]].sum() for j in range(n) if j != i) for i in range(n)]
    hub = int(np.argmax(totals))
    seats = np.stack([rows if k == hub else pairs[hub, k] for k in range(n)])
    while True:
        gains, found = [], []
        for k in range(n):
            others = sum(values[j, seats[j], k] for j in range(n) if j != k)  # (width, units of k)
            found.append(_assign(others))
            gains.append(others[rows, found[k]].sum() - others[rows, seats[k]].sum())
        best = int(np.argmax(gains))
        if gains[best] <= 1e-9 * width:
            return seats[:, np.argsort(seats[0])]
        seats[best] = found[best]

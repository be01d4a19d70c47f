"""One-to-one alignment of models by linear assignment."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.matching.greedy import Labels
from hf_zipit.transform.match import Match, check_sizes


def permute_match(similarity: Tensor, sizes: Sequence[int], *, compat: bool = False) -> Match:
    """Align the models one-to-one so that the summed similarity of matched units is largest (ZipIt!, eq. 3).

    For two models the result is optimal. For more, every model is first aligned to the one that is most similar to
    all others. Then the model that gains most is repeatedly realigned to the sum of all others, until none gains. The
    similarity summed over all pairs of models never falls. The result does not depend on the order of the models, but
    for ties, as between units that never fire.

    Where models have different widths, every unit of a narrower one joins another unit of the widest. The units that it
    lacks are like no unit: their similarity is 0.

    Takes O(n^3) time for one assignment of n units; N models need about N^2 / 2 of them, and N for each realignment.

    Args:
        similarity: `(n, n)`, units of model 0 first; larger is more similar.
        sizes: Units of each model, `sum(sizes) == n`.
        compat: Align every model to the first one, as the authors' code does.

    Returns:
        A match as wide as the widest model, in the order of model 0's units. `score` is the mean similarity to model 0
        of the pairwise optimal assignments.

    Raises:
        OptionError: The similarity has another shape.

    >>> s = torch.tensor([[1, 0, 0, 0.9], [0, 1, 0.9, 0], [0, 0.9, 1, 0], [0.9, 0, 0, 1]])
    >>> permute_match(s, [2, 2]).labels
    tensor([0, 1, 1, 0])
    """
    sizes, _ = check_sizes(similarity, sizes, None)
    width = max(sizes)
    count = len(sizes)
    real = np.arange(width) < np.array(sizes)[:, None]  # (N, width)
    padded = np.zeros((count * width, count * width))
    padded[np.ix_(real.reshape(-1), real.reshape(-1))] = similarity.detach().cpu().double().numpy()
    values = padded.reshape(count, width, count, width)
    first = {(0, k): _assign(values[0, :, k]) for k in range(1, count)}
    scores = [values[0, range(width), k, first[0, k]].mean() for k in range(1, count)]
    score = float(np.mean(scores)) if scores else 1.0  # a single model is as it is
    if count > 2 and not compat:
        columns = _align_jointly(values, first)
    else:
        columns = np.stack([np.arange(width), *first.values()])
    labels = torch.from_numpy(np.argsort(columns, axis=1)[real])
    return Match(labels, sizes, width, score)


def _assign(scores: NDArray[np.float64]) -> Labels:
    """The column of every row in the assignment with the largest sum."""
    columns: Labels = linear_sum_assignment(scores, maximize=True)[1]
    return columns


def _align_jointly(values: NDArray[np.float64], first: Mapping[tuple[int, int], Labels]) -> Labels:
    """Align three or more models to each other.

    Args:
        values: The similarity, `(model, unit, model, unit)`.
        first: The assignments of the first model's units to each other model's, by `(0, model)`.

    Returns:
        `(N, width)`: for each model, the unit that joins each merged unit. The first model's units keep their order.
    """
    n, width = values.shape[:2]
    units = np.arange(width)
    pairs = _all_pairs(values, first)
    totals = [sum(values[i, units, j, pairs[i, j]].sum() for j in range(n) if j != i) for i in range(n)]
    hub = int(np.argmax(totals))
    columns = np.stack([units if k == hub else pairs[hub, k] for k in range(n)])
    while True:
        gains = []
        found = []
        for k in range(n):
            others = sum(values[j, columns[j], k] for j in range(n) if j != k)  # (width, units of k)
            found.append(_assign(others))
            gains.append(others[units, found[k]].sum() - others[units, columns[k]].sum())
        best = int(np.argmax(gains))
        if gains[best] <= 1e-9 * width:
            return columns[:, np.argsort(columns[0])]
        columns[best] = found[best]


def _all_pairs(values: NDArray[np.float64], first: Mapping[tuple[int, int], Labels]) -> dict[tuple[int, int], Labels]:
    """The optimal assignment of every ordered pair of models; those of the first model are given."""
    n = len(values)
    later = {(i, j): _assign(values[i, :, j]) for i in range(1, n) for j in range(i + 1, n)}
    forward = {**first, **later}
    backward = {(j, i): np.argsort(columns) for (i, j), columns in forward.items()}
    return forward | backward

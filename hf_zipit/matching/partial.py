"""Partial alignment of two models: the best pairs are merged, and the other units are kept apart."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.permute import permute_match
from hf_zipit.transform.match import Match, check_sizes


def partial_match(similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None) -> Match:
    """Pair units of two models so that a given number stays in all, and the summed similarity of the pairs is largest.

    To keep m of the n1 + n2 units, k = n1 + n2 - m pairs are made. The k best ones are chosen together, where `permute`
    with a width first pairs all units and then splits the worst pairs. This is partial optimal transport between units
    of equal masses, whose best plan is a partial permutation.

    One assignment of m by m finds them: n2 - k rows and n1 - k columns are added that pair with real units only, at no
    gain. So exactly k real pairs are left. Takes O(m^3) time.

    Args:
        similarity: `(n, n)`, units of model 0 first; larger is more similar.
        sizes: Units of each model, `sum(sizes) == n`.
        keep: Merged units m, from the width of the widest model to n; by default that width.

    Returns:
        A match of width `keep`: the units of model 0 in their order, then those of model 1 that stay apart. At the
        width of the widest model it is that of `permute`. `score` is the mean similarity of the pairs.

    Raises:
        OptionError: The similarity has another shape, `keep` is out of range, or there are more than two models.

    Source: Partial Fusion (ICML 2026).

    >>> s = torch.tensor([[1, 0, 0.9, 0.8], [0, 1, 0.8, 0], [0.9, 0.8, 1, 0], [0.8, 0, 0, 1]])
    >>> partial_match(s, [2, 2], keep=3).labels  # the best pair, though `permute` pairs 0.8 and 0.8
    tensor([0, 1, 0, 2])
    """
    sizes, keep = check_sizes(similarity, sizes, max(sizes) if keep is None else keep)
    if keep == max(sizes):
        return permute_match(similarity, sizes)
    if len(sizes) != 2:
        raise OptionError(f"sizes is {list(sizes)}: only two models can be aligned partially; use permute")
    if keep < max(sizes):
        raise OptionError(
            f"keep is {keep}, below the {max(sizes)} units of a model: only methods that merge within models, such as "
            "zip and select, go below the width of one model"
        )
    first, second = sizes
    values = similarity.detach().cpu().double().numpy()[:first, first:]
    padded = np.zeros((keep, keep))
    padded[first:, second:] = -np.inf  # what is added never pairs with itself
    padded[:first, :second] = values
    columns = linear_sum_assignment(padded, maximize=True)[1]
    partner = np.argsort(columns)[:second]  # of each unit of model 1: a unit of model 0, or an added row
    pairs = partner < first
    partner[~pairs] = np.arange(first, keep)
    labels = torch.from_numpy(np.concatenate([np.arange(first), partner]))
    score = float(values[partner[pairs], pairs.nonzero()[0]].mean()) if pairs.any() else 0.0
    return Match(labels, sizes, keep, score)

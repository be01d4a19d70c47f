"""Optimal pairs of units: a maximum-weight perfect matching, by rustworkx (the extra `optimal`)."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.average import common_width
from hf_zipit.matching.quality import agreement, bound
from hf_zipit.transform.match import Match

LIMIT = 1024  # most units of two models together
_SCALE = 1e9  # rustworkx takes integer weights


def optimal_match(similarity: Tensor, sizes: Sequence[int]) -> Match:
    """Pair the units of two models, across and within, with the largest summed similarity (ZipIt!, table 8).

    Of more than two models, the most similar two are matched first. The others join one at a time, the most similar
    first. Each is joined by an optimal matching of its units and the clusters so far, which compares units by their
    mean similarity. Takes O(n^3) time for each matching.

    Args:
        similarity: `(n, n)`, units of model 0 first; larger is more similar. It is symmetrised.
        sizes: Units of each model, all equal, `sum(sizes) == n`.

    Returns:
        A match of width `sizes[0]`.

    Raises:
        OptionError: rustworkx is not installed, the models have different widths, or two of them have more than
            `LIMIT` units together.

    >>> s = torch.tensor([[1, 0.9, 0.8, 0], [0.9, 1, 0, 0.2], [0.8, 0, 1, 0], [0, 0.2, 0, 1]])
    >>> optimal_match(s, [2, 2]).labels  # 0.8 + 0.2, where greedy matching takes 0.9 + 0
    tensor([0, 1, 0, 1])
    """
    sizes = tuple(sizes)
    width = common_width(sizes, "optimal")
    if 2 * width > LIMIT:
        raise OptionError(
            f"optimal pairs at most {LIMIT} units, and two models have {2 * width} here: use the method zip, whose "
            "log shows how close to optimal it is, or an earlier cut"
        )
    count = len(sizes)
    values = similarity.detach().cpu().double()
    values = (values + values.T) / 2
    units = [torch.arange(k * width, (k + 1) * width) for k in range(count)]
    labels = torch.full((len(values),), -1)
    pair = max(combinations(range(count), 2), key=lambda p: _pair_bound(values, torch.cat([units[k] for k in p])))
    first, following = pair
    labels[units[first]] = torch.arange(width)
    waiting = [k for k in range(count) if k != first]
    joined = [first]
    while waiting:
        labels = _join(values, labels, torch.cat([units[k] for k in joined]), units[following])
        joined.append(following)
        waiting.remove(following)
        if waiting:
            following = max(
                waiting, key=lambda k: sum(_pair_bound(values, torch.cat([units[k], units[j]])) for j in joined)
            )
    match = Match(labels, sizes, width)
    return Match(labels, sizes, width, agreement(values, match))


def _pair_bound(values: Tensor, units: Tensor) -> float:
    """Upper bound on the agreement that the units of two models can reach, as their similarity."""
    return bound(values[units][:, units])


def _join(values: Tensor, labels: Tensor, inside: Tensor, new: Tensor) -> Tensor:
    """Match existing clusters with the units of one more model.

    Args:
        values: Similarity, `(n, n)`.
        labels: Labels so far, `(n,)`.
        inside: Indices of the units that have labels.
        new: Indices of the units that join.

    Returns:
        New labels of the units in `inside` and `new`; the others are unchanged.
    """
    width = len(new)
    parts = torch.cat([labels[inside], width + torch.arange(width)])
    chosen = torch.cat([inside, new])
    counts = torch.bincount(parts, minlength=2 * width).double()
    sums = values.new_zeros(2 * width, len(chosen)).index_add_(0, parts, values[chosen][:, chosen])
    sums = values.new_zeros(2 * width, 2 * width).index_add_(1, parts, sums)
    pairs = _perfect((sums / counts / counts[:, None]).numpy())  # (width, 2), rows ordered by their first node
    label_of = torch.empty(2 * width, dtype=torch.long)
    label_of[torch.from_numpy(pairs).flatten()] = torch.arange(width).repeat_interleave(2)
    out = labels.clone()
    out[chosen] = label_of[parts]
    return out


def _perfect(weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs `(i, j)`, i < j, of a maximum-weight perfect matching of the complete graph, ordered by i."""
    try:
        import rustworkx
    except ImportError:
        raise OptionError("the method optimal needs rustworkx: pip install 'hf-zipit[optimal]'") from None
    n = len(weights)
    graph = rustworkx.PyGraph(multigraph=False)
    graph.add_nodes_from(range(n))
    scaled = np.rint(weights * _SCALE).astype(np.int64)
    rows, columns = np.triu_indices(n, 1)
    graph.add_edges_from(list(zip(rows.tolist(), columns.tolist(), scaled[rows, columns].tolist(), strict=True)))
    found = rustworkx.max_weight_matching(graph, max_cardinality=True, weight_fn=int)
    return np.array(sorted(tuple(sorted(pair)) for pair in found), dtype=np.int64)

"""The best pairs of units there are: a maximum-weight perfect matching, by rustworkx (the extra `optimal`)."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.quality import agreement, bound
from hf_zipit.transform.match import Match

LIMIT = 1024  # units of two models together
_SCALE = 1e9  # rustworkx wants integer weights


def optimal_match(similarity: Tensor, sizes: Sequence[int]) -> Match:
    """Pair the units of both models, across and within, with the largest summed similarity (ZipIt!, table 8).

    Of more than two models, the most alike pair is matched first; the others join one by one, the most alike first,
    each by an optimal matching of its units and the clusters so far (with the mean similarity of their members).

    Raises:
        OptionError: rustworkx is not installed, models of different widths, or more than `LIMIT` units to pair.

    >>> s = torch.tensor([[1, 0.9, 0.8, 0], [0.9, 1, 0, 0.2], [0.8, 0, 1, 0], [0, 0.2, 0, 1]])
    >>> optimal_match(s, [2, 2]).labels  # 0.8 + 0.2, where the greedy takes 0.9 + 0  # doctest: +SKIP
    tensor([0, 1, 0, 1])
    """
    sizes, width = tuple(sizes), sizes[0]
    if len(set(sizes)) != 1:
        raise OptionError(f"optimal needs models of one width, not {list(sizes)}")
    if 2 * width > LIMIT:
        raise OptionError(
            f"optimal pairs at most {LIMIT} units, and two models have {2 * width} here: use the method zip, whose "
            "log shows how close to optimal it is, or an earlier cut"
        )
    values = similarity.detach().cpu().double()
    values = (values + values.T) / 2
    units = [torch.arange(k * width, (k + 1) * width) for k in range(len(sizes))]
    labels = torch.full((len(values),), -1)
    first = max(combinations(range(len(sizes)), 2), key=lambda p: _alike(values, torch.cat([units[k] for k in p])))
    labels[units[first[0]]] = torch.arange(width)
    waiting, joined = [k for k in range(len(sizes)) if k != first[0]], [first[0]]
    following = first[1]
    while waiting:
        labels = _join(values, labels, torch.cat([units[k] for k in joined]), units[following])
        joined.append(following)
        waiting.remove(following)
        if waiting:
            following = max(waiting, key=lambda k: sum(_alike(values, torch.cat([units[k], units[j]])) for j in joined))
    match = Match(labels, sizes, width)
    return Match(labels, sizes, width, agreement(values, match))


def _alike(values: Tensor, units: Tensor) -> float:
    return bound(values[units][:, units])


def _join(values: Tensor, labels: Tensor, inside: Tensor, new: Tensor) -> Tensor:
    """Match the clusters of the units inside with new units; returns labels for all of them."""
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

"""Unit selection: keep the units that predict best what the next layers read, and merge the others into them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.matching.quality import agreement
from hf_zipit.transform.match import Match, check_sizes

JITTER = 1e-6  # added to the variance of every unit, which is 1
MIN_VARIANCE = 1e-5  # with less unexplained variance than this, a unit counts as predicted by the kept ones


def select_match(
    similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None, readers: Tensor | None = None
) -> Match:
    """Keep the units that predict all others best, and merge every other unit into the kept unit most similar to it.

    Greedy column subset selection (Farahat et al., 2011): repeatedly keeps the unit that explains most of what the
    units kept so far leave unexplained, as the next layers read it. The merge averages each cluster like a zip. A
    refit targets the kept units alone, not means of dissimilar units, and compensates for the rest. Takes O(n^2) time
    for each kept unit, and O(n^2) memory.

    Args:
        similarity: Correlation, `(n, n)`, units of model 0 first.
        sizes: Units of each model, `sum(sizes) == n`.
        keep: Merged units; the mean of `sizes` by default.
        readers: `(n, n)`, positive semi-definite: how the errors of units i and j combine in the layers that read them
            (see `weights.readers`). Identity by default: every unit counts the same.

    Returns:
        A match of width `keep`, with `kept` set. Merged units are in the order of the kept units.

    Raises:
        OptionError: `keep` is out of range, or the similarity has another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> match = select_match(s, [2, 2])
    >>> match.labels, match.kept
    (tensor([0, 1, 0, 1]), tensor([ True,  True, False, False]))
    """
    sizes, keep = check_sizes(similarity, sizes, keep)
    values = similarity.double()
    identity = torch.eye(len(values), dtype=values.dtype, device=values.device)
    chosen = _select(values + JITTER * identity, identity if readers is None else readers.to(values), keep)
    rank = chosen.argsort().argsort()  # merged units are in the order of the kept ones
    labels = rank[values[:, chosen].argmax(1)]
    labels[chosen] = rank
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[chosen.cpu()] = True
    match = Match(labels.cpu(), sizes, keep, kept=kept)
    return replace(match, score=agreement(similarity, match))


def _select(values: Tensor, readers: Tensor, keep: int) -> Tensor:
    """The kept units, last choice first, `(keep,)`.

    Let `R` be the residual of the correlation, after the kept units have explained their part. Keeping unit j then
    explains `r_j' Q r_j / r_jj`, where `Q` is `readers`. `R` is never formed: its columns are those of `values` minus
    a low-rank factor of the explained part, and `r_j' Q r_j` is updated for all j at once. Once the kept units
    explain all others, the unit least similar to any of them is next, so that duplicates are kept last.
    """
    factor = values.new_zeros(len(values), keep)
    residual = values.diagonal().clone()  # r_jj
    gain = ((readers @ values) * values).sum(0)  # r_j' Q r_j
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    order: list[int] = []
    nearest = torch.full_like(residual, -torch.inf)  # similarity to the most similar kept unit
    for i in range(keep):
        candidates = ~chosen & (residual > MIN_VARIANCE)
        score = torch.where(candidates, gain / residual, -torch.inf) if candidates.any() else -nearest
        unit = int(score.argmax())
        order.append(unit)
        chosen[unit] = True
        nearest = torch.maximum(nearest, values[unit])
        nearest[unit] = torch.inf
        explained = factor[:, :i]
        scale = residual[unit].clamp(min=MIN_VARIANCE).sqrt()
        column = (values[:, unit] - explained @ explained[unit]) / scale  # (n,)
        read = readers @ column
        across = values @ read - explained @ (explained.T @ read)
        gain += column * (column * (column @ read) - 2 * across)
        residual -= column.square()
        factor[:, i] = column
    return torch.tensor(order[::-1], device=values.device)

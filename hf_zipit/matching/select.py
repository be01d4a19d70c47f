"""Selection: clusters around the units that tell most of what the next layers read."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.matching.quality import agreement
from hf_zipit.transform.match import Match, check_sizes

JITTER = 1e-6  # added to every unit's variance of 1
FLOOR = 1e-5  # a unit with less variance of its own is told by those selected before


def select_match(
    similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None, readers: Tensor | None = None
) -> Match:
    """Merge every unit with the one most like it of a selection, from which all units are predicted best.

    Greedy column subset selection (Farahat et al., 2011): time after time the unit is kept that explains most of what
    those kept so far leave unexplained, here of what the next layers read. The merge averages as a zip does; a refit
    aims at the kept units themselves, not at means of unlike ones, and makes up for what the others told beyond them.
    O(n^2) time for each unit kept, O(n^2) memory.

    Args:
        similarity: correlation, `(n, n)`, units of model 0 first.
        sizes: units per model, `sum(sizes) == n`.
        keep: merged units; the mean of `sizes` by default.
        readers: `(n, n)`, positive semi-definite: how an error of unit i and one of unit j add up in the layers that
            read them (`weights.readers`). By default every unit counts alike, by itself.

    Raises:
        OptionError: keep out of range, or a similarity of another shape.

    >>> s = torch.tensor([[1, 0, 0.9, 0], [0, 1, 0, 0.8], [0.9, 0, 1, 0], [0, 0.8, 0, 1]])
    >>> match = select_match(s, [2, 2])
    >>> match.labels, match.kept
    (tensor([0, 1, 0, 1]), tensor([ True,  True, False, False]))
    """
    sizes, keep = check_sizes(similarity, sizes, keep)
    values = similarity.double()
    units = torch.eye(len(values), dtype=values.dtype, device=values.device)
    chosen = _forward(values + JITTER * units, units if readers is None else readers.to(values), keep)
    place = chosen.argsort().argsort()  # merged units have the order of the kept ones
    labels = place[values[:, chosen].argmax(1)]
    labels[chosen] = place
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[chosen.cpu()] = True
    match = Match(labels.cpu(), sizes, keep, kept=kept)
    return replace(match, score=agreement(similarity, match))


def _forward(values: Tensor, readers: Tensor, keep: int) -> Tensor:
    """The kept units, the last one first, `(keep,)`.

    Of `R`, what is left of the correlation, unit j explains `r_j' Q r_j / r_jj`. `R` is never formed: its columns are
    those of `values` less a factor of what was explained, and `r_j' Q r_j` is brought up to date for all j at once.
    When the kept units tell all others, the one least like any of them is next, so that copies are kept last.
    """
    factor = values.new_zeros(len(values), keep)
    left = values.diagonal().clone()
    explains = ((readers @ values) * values).sum(0)
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    order: list[int] = []
    nearest = torch.full_like(left, -torch.inf)
    for i in range(keep):
        left_over = ~chosen & (left > FLOOR)
        score = torch.where(left_over, explains / left, -torch.inf) if left_over.any() else -nearest
        unit = int(score.argmax())
        order.append(unit)
        chosen[unit] = True
        nearest = torch.maximum(nearest, values[unit])
        nearest[unit] = torch.inf
        done = factor[:, :i]
        column = (values[:, unit] - done @ done[unit]) / left[unit].clamp(min=FLOOR).sqrt()  # (n,)
        read = readers @ column
        across = values @ read - done @ (done.T @ read)
        explains += column * (column * (column @ read) - 2 * across)
        left -= column.square()
        factor[:, i] = column
    return torch.tensor(order[::-1], device=values.device)

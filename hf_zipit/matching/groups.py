"""Matching of spaces whose units move in whole groups: attention heads, GroupNorm, grouped convolutions."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.matching.permute import permute_match
from hf_zipit.transform.match import Match, UnitMatch

Blocks = NDArray[np.float64]  # a similarity as (model, group, unit, model, group, unit)


def match_groups(
    similarities: Sequence[Tensor | None],
    models: int,
    groups: int,
    methods: Sequence[UnitMatch],
    *,
    compat: bool = False,
) -> list[Match]:
    """Match spaces whose groups move together, with one order of groups for all spaces.

    First the groups are aligned one-to-one across models. The score of two groups is the best assignment of their
    units, summed over the spaces. Then each space's method matches the units inside every tuple of aligned groups.

    The score table takes G^2 assignments of n / G units for each space and pair of models, O(N^2 n^3 / G) in all.

    Args:
        similarities: For each space of n units, an `(N * n, N * n)` matrix; `None` for a space with one unit per
            group that only follows the others.
        models: Number of models, N.
        groups: Number of groups of each space, G.
        methods: For each space, the method that matches the units of one tuple of groups.
        compat: Align the groups of every model to those of the first, as MuDSC's code does.

    Returns:
        A match for each space, groups in the order of the first model.

    >>> swapped = torch.eye(4)[[0, 1, 1, 0]] @ torch.eye(4)[[0, 1, 1, 0]].T  # unit 0 of model 0 is unit 1 of model 1
    >>> [match] = match_groups([swapped], 2, 2, [permute_match])
    >>> match.labels
    tensor([0, 1, 1, 0])
    """
    blocks = [None if s is None else _by_group(s, models, groups) for s in similarities]
    scores = np.zeros((models, groups, models, groups))
    for i, j in combinations(range(models), 2):
        if i == 0 or not compat:
            scores[i, :, j] = sum(group_scores(block[i, :, :, j]) for block in blocks if block is not None)
            scores[j, :, i] = scores[i, :, j].T
    table = torch.from_numpy(scores.reshape(models * groups, -1))
    labels = permute_match(table, [groups] * models, compat=compat).labels.reshape(models, groups)
    orders = labels.argsort(1).numpy()  # orders[k][g]: the group of model k that joins merged group g
    return [
        Match(labels.reshape(-1), (groups,) * models, groups)
        if block is None
        else _match_inside_groups(block, orders, method)
        for block, method in zip(blocks, methods, strict=True)
    ]


def group_scores(pairs: Blocks) -> NDArray[np.float64]:
    """Score of every group of one model with every group of another: the best assignment of their units.

    `pairs` has shape (group, unit, group, unit), the result (group, group).
    """
    groups = len(pairs)
    scores = np.empty((groups, groups))
    for a in range(groups):
        for b in range(groups):
            pair = pairs[a, :, b]
            rows, columns = linear_sum_assignment(pair, maximize=True)
            scores[a, b] = pair[rows, columns].sum()
    return scores


def _by_group(similarity: Tensor, models: int, groups: int) -> Blocks:
    n = similarity.shape[0] // models
    shape = (models, groups, n // groups)
    return similarity.detach().cpu().double().numpy().reshape(*shape, *shape)


def _match_inside_groups(block: Blocks, orders: NDArray[np.int64], method: UnitMatch) -> Match:
    """Match the units inside every tuple of aligned groups.

    Args:
        block: The similarity by groups.
        orders: `(N, G)`: the group of each model that joins each merged group.
        method: Matches the units of one tuple.
    """
    models, groups, units = block.shape[:3]
    labels = np.empty((models, groups, units), dtype=np.int64)
    kept = np.ones((models, groups, units), dtype=bool)
    width = units
    scores = []
    for group in range(groups):
        chosen = [int(order[group]) for order in orders]
        part = np.stack([[block[i, a, :, j, b] for j, b in enumerate(chosen)] for i, a in enumerate(chosen)])
        part = part.transpose(0, 2, 1, 3).reshape(models * units, models * units)
        inner = method(torch.from_numpy(np.ascontiguousarray(part)), [units] * models)
        width = inner.width
        scores.append(inner.score)
        for model, a in enumerate(chosen):
            found = inner.of(model).numpy()
            labels[model, a] = np.where(found < 0, found, group * width + found)
            if inner.kept is not None:
                kept[model, a] = torch.split(inner.kept, [units] * models)[model].numpy()
    sizes = (groups * units,) * models
    mask = None if kept.all() else torch.from_numpy(kept.reshape(-1))
    return Match(torch.from_numpy(labels.reshape(-1)), sizes, groups * width, float(np.mean(scores)), mask)

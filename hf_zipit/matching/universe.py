"""All models aligned at once, through a universe of units (C2M3, Crisostomi et al., 2024).

Every model has one permutation per space, from its units to those of a universe in which the models are averaged. Maps
between two models lead through the universe, so they agree around any cycle of models. The permutations of all spaces
are sought together, among doubly stochastic matrices, by the algorithm of Frank and Wolfe.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.polynomial import Polynomial
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.blocks import Block, blocks_of
from hf_zipit.matching.groups import group_scores
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.transform.match import Match

MIN_GAIN = 1e-6  # share of the bound of the objective: a smaller gain counts as none
PATIENCE = 5  # steps without a gain before the search ends
Maps = Mapping[str, Sequence[Tensor]]  # space -> for each model `(n, n)`, from its units to those of the universe
Family = Sequence[FeatureSpace]  # spaces whose groups move together
logger = logging.getLogger(__name__)


def universe_match(
    states: Sequence[Mapping[str, Tensor]], binding: Binding, families: Sequence[Family], *, sweeps: int = 100
) -> dict[str, Match]:
    """Align all models one-to-one in all spaces at once, by weights, through a universe of units.

    The search starts with unit i of every model at unit i of the universe, and maximises `objective`. A step leads to
    the permutations that are best for the gradient: of all models at once, as in the paper, or of one model, whichever
    gains more. Two models that move towards each other at once can pass each other, and stay halfway. Each step is as
    long as gains most, so the objective never falls until the result is rounded to permutations.

    The result does not depend on the order of the models. A step takes O(N w n) time for w weights, and N assignments
    of O(n^3) for each space of n units.

    Args:
        states: State dicts of the N models, all of one width.
        binding: Maps each space to slices of parameters.
        families: The spaces; those of a family move their groups together.
        sweeps: Largest number of steps.

    Returns:
        A match for every space, merged units in the order of the universe. `score` is the objective of them all over
        its upper bound.

    Raises:
        OptionError: None of the weights along a space can be compared between the models.

    Source: C2M3 (Crisostomi et al., NeurIPS 2024).

    >>> universe_match(states, binding, [[space] for space in binding.spaces.values()])  # doctest: +SKIP
    """
    sizes = {space.name: space.size for family in families for space in family}
    blocks = blocks_of(states, binding, sizes)
    _check_compared(blocks, families)
    order = _canonical(blocks, len(states))
    blocks = [Block(block.spaces, tuple(block.values[k] for k in order)) for block in blocks]
    start = {name: [torch.eye(size) for _ in states] for name, size in sizes.items()}
    maps = deque(climb(blocks, families, start, sweeps), maxlen=1).pop()
    found = best_permutations(families, maps)
    score = objective(blocks, found) / max(bound(blocks), torch.finfo().tiny)
    places = [order.index(k) for k in range(len(states))]
    labels = {name: torch.cat([found[name][place].argmax(0) for place in places]) for name in sizes}
    return {name: Match(labels[name], (size,) * len(states), size, score) for name, size in sizes.items()}


def climb(blocks: Sequence[Block], families: Sequence[Family], maps: Maps, limit: int) -> Iterator[Maps]:
    """Doubly stochastic maps of ever larger `objective`, by steps of Frank and Wolfe; one step at least.

    Args:
        blocks: The weights.
        families: The spaces; those of a family move their groups together.
        maps: Where to start.
        limit: Largest number of steps.
    """
    least = MIN_GAIN * bound(blocks)
    waited = 0
    for step in range(limit):
        maps, gain = _moved(blocks, maps, best_permutations(families, gradients(blocks, maps)))
        yield maps
        waited = 0 if gain > least else waited + 1
        if gain <= 0 or waited == PATIENCE:
            logger.info("nothing is gained after %d steps", step + 1)
            return


def objective(blocks: Sequence[Block], maps: Maps) -> float:
    """The inner product of the weights of two models in the universe, summed over all pairs of models.

    Args:
        blocks: The weights.
        maps: From the units of each model to those of the universe.
    """
    total = 0.0
    for block in blocks:
        there = [_mapped(block, maps, k) for k in range(len(block.values))]
        together = torch.stack(there).sum(0)
        total += _dot(together, together) - sum(_dot(value, value) for value in there)
    return total / 2


def bound(blocks: Sequence[Block]) -> float:
    """An upper bound on `objective`: that of models whose weights have one direction."""
    squares = np.sum([[_dot(value, value) for value in block.values] for block in blocks], axis=0)
    return float((np.sqrt(squares).sum() ** 2 - squares.sum()) / 2)


def gradients(blocks: Sequence[Block], maps: Maps) -> dict[str, list[Tensor]]:
    """The gradient of `objective` with respect to every map.

    Args:
        blocks: The weights.
        maps: From the units of each model to those of the universe.
    """
    out = {name: [torch.zeros_like(value) for value in values] for name, values in maps.items()}
    for block in blocks:
        models = range(len(block.values))
        axes = range(len(block.spaces))
        but = [[_mapped(block, maps, k, but=axis) for axis in axes] for k in models]
        there = [_applied(maps[block.spaces[0]][k], but[k][0], 0) for k in models]
        total = torch.stack(there).sum(0)
        for k in models:
            others = total - there[k]
            for axis, name in enumerate(block.spaces):
                rest = [i for i in range(others.ndim) if i != axis]
                out[name][k] += torch.tensordot(others, but[k][axis], (rest, rest))
    return out


def best_permutations(families: Sequence[Family], scores: Maps) -> dict[str, list[Tensor]]:
    """The permutations with the largest summed scores; where groups move together, of groups and of units inside them.

    Args:
        families: Spaces whose groups move together.
        scores: For each space and model `(n, n)`, the units of the universe by those of the model.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in scores}
    for family in families:
        for model in range(len(scores[family[0].name])):
            mine = [scores[space.name][model].double().numpy() for space in family]
            for space, columns in zip(family, _assigned(mine, family[0].groups), strict=True):
                found[space.name].append(torch.eye(space.size)[torch.from_numpy(columns)])
    return found


def _assigned(tables: Sequence[NDArray[np.float64]], groups: int) -> Iterator[NDArray[np.int64]]:
    """For each space of a family, the unit of the model at each unit of the universe."""
    if groups == 1:
        yield from (linear_sum_assignment(table, maximize=True)[1] for table in tables)
        return
    divided = [table.reshape(groups, len(table) // groups, groups, -1) for table in tables]
    order = linear_sum_assignment(sum(group_scores(table) for table in divided), maximize=True)[1]
    for table in divided:
        inner = [linear_sum_assignment(table[a, :, b], maximize=True)[1] for a, b in enumerate(order)]
        yield (order[:, None] * table.shape[1] + np.stack(inner)).reshape(-1)


def _moved(blocks: Sequence[Block], maps: Maps, targets: Maps) -> tuple[Maps, float]:
    """The maps after the best step towards the targets, of all models or of one, and what it gains."""
    paths = gains_along(blocks, maps, targets)
    tops = [_top(path) for path in paths]
    best = max(range(len(tops)), key=lambda i: tops[i][0])
    gain, length = tops[best]
    if gain <= 0:
        return maps, 0.0
    moves = range(len(paths) - 1) if best == 0 else [best - 1]
    return {
        name: [value.lerp(targets[name][k], length) if k in moves else value for k, value in enumerate(values)]
        for name, values in maps.items()
    }, gain


def gains_along(blocks: Sequence[Block], maps: Maps, targets: Maps) -> list[Polynomial]:
    """The gain of the objective as a polynomial of the length of a step: of all models at once, and of each alone.

    With maps `(1 - t) P + t V`, the weights in the universe are polynomials of t, whose coefficients are tensors. So
    are their inner products, exactly, and no point along the step has to be tried.

    Args:
        blocks: The weights.
        maps: From the units of each model to those of the universe.
        targets: The maps at length 1.
    """
    models = len(blocks[0].values) if blocks else 0
    paths = [Polynomial([0.0])] * (1 + models)
    for block in blocks:
        there = [_path(block, maps, targets, k) for k in range(models)]  # model -> power of t -> tensor
        total = [torch.stack(values).sum(0) for values in zip(*there, strict=True)]
        powers = range(len(total))
        joint = np.zeros(2 * len(total) - 1)
        for i in powers:
            for j in powers:
                joint[i + j] += (_dot(total[i], total[j]) - sum(_dot(path[i], path[j]) for path in there)) / 2
        paths[0] = paths[0] + Polynomial([0.0, *joint[1:]])
        for k, path in enumerate(there):
            others = total[0] - path[0]
            paths[1 + k] = paths[1 + k] + Polynomial([0.0, *(_dot(value, others) for value in path[1:])])
    return paths


def _path(block: Block, maps: Maps, targets: Maps, model: int) -> list[Tensor]:
    """The weights of a model in the universe along a step: the coefficients of the powers of its length."""
    path = [block.values[model]]
    for axis, name in enumerate(block.spaces):
        stays = [_applied(maps[name][model], value, axis) for value in path]
        moves = [_applied(targets[name][model], value, axis) - old for value, old in zip(path, stays, strict=True)]
        path = [stays[0], *(a + b for a, b in zip(stays[1:], moves[:-1], strict=True)), moves[-1]]
    return path


def _top(path: Polynomial) -> tuple[float, float]:
    """The largest value of a polynomial for 0 to 1, and where it is."""
    turns = path.deriv().roots()
    turns = turns.real[(turns.real > 0) & (turns.real < 1)]  # a point too many does no harm
    points = np.concatenate([[0.0, 1.0], turns])
    values = path(points)
    best = int(np.argmax(values))
    return float(values[best]), float(points[best])


def _mapped(block: Block, maps: Maps, model: int, but: int | None = None) -> Tensor:
    """The weights of a model in the universe; one axis may stay as it is."""
    value = block.values[model]
    for axis, name in enumerate(block.spaces):
        if axis != but:
            value = _applied(maps[name][model], value, axis)
    return value


def _applied(matrix: Tensor, value: Tensor, axis: int) -> Tensor:
    """A doubly stochastic matrix times a tensor, along one axis; a permutation takes no products."""
    top, column = matrix.max(1)
    if bool((top == 1).all()):
        return value.index_select(axis, column)
    product: Tensor = torch.tensordot(matrix, value, ([1], [axis]))
    return product.movedim(0, axis)


def _dot(a: Tensor, b: Tensor) -> float:
    """The inner product of two tensors."""
    return float((a * b).sum(dtype=torch.float64))


def _canonical(blocks: Sequence[Block], models: int) -> list[int]:
    """The models in an order that is told by their weights alone, so that rounding does not depend on theirs."""
    keys: list[list[float]] = [[] for _ in range(models)]
    for block in blocks:
        ramp = torch.linspace(0, 1, block.values[0].numel()).view_as(block.values[0])
        for key, value in zip(keys, block.values, strict=True):
            key.append(_dot(ramp, value))
    return sorted(range(models), key=lambda k: keys[k])


def _check_compared(blocks: Sequence[Block], families: Sequence[Family]) -> None:
    """Refuse spaces along which no weights can be compared: their order would be left to chance."""
    compared = {name for block in blocks for name in block.spaces}
    for family in families:
        if not compared & {space.name for space in family}:
            raise OptionError(
                f"c2m3 compares weights, and of space '{family[0].name}' none can be compared between the models; use "
                "another method, or another cut"
            )

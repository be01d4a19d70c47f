"""Widths under a FLOPs budget: the resizable spaces, the variance lost at each width, and a greedy allocation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.costs import LayerCosts, runs_at
from hf_zipit.errors import OptionError
from hf_zipit.matching.widen import unit_count
from hf_zipit.specs.spaces import Binding
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import Match

HALF = 0.5  # the width at which spaces are tried that are to become smaller
GRID = 8  # widths are multiples of 1/GRID of one model's width
ROUNDING = 1e-9  # tolerance when FLOPs are compared with the budget

Errors = Mapping[str, Mapping[float, float]]  # space -> width over one model's width -> share of variance lost


@torch.no_grad()
def free_spaces(model: nn.Module, binding: Binding, input_size: Sequence[int], ratio: float = 2.0) -> set[str]:
    """The spaces that can change width: the model still runs when they do, and no layer norm averages over them.

    Attention heads cannot change width, because their modules are built for one width.

    Args:
        model: the model; it is copied to the meta device.
        binding: its spec.
        input_size: (channels, height, width).
        ratio: the width that is tried, relative to the model's: above 1 for wider merges, below 1 for smaller ones.
    """
    known = {name: space for name, space in binding.spaces.items() if not space.one_to_one and space.probes}
    ratios = {name: unit_count(x.size, x.groups, math.ceil(ratio), ratio) / x.size for name, x in known.items()}
    if runs_at(model, binding, ratios, input_size):
        return set(ratios)
    return {name for name, value in ratios.items() if runs_at(model, binding, {name: value}, input_size)}


def unexplained(statistics: SpaceStatistics, match: Match) -> float:
    """Share of the variance of all units that no linear function of the merged units recovers, in [0, 1].

    Args:
        statistics: moments of the `n` units of all models, pooled over tasks.
        match: merges them into `m` units.
    """
    shares = explained(statistics, match)
    alive = shares.isfinite()
    return float(1 - shares[alive].sum() / alive.sum().clamp(min=1))


def explained(statistics: SpaceStatistics, match: Match | DenseMatch) -> Tensor:
    """Share of the variance of each unit that a linear function of the merged units recovers, `(n,)`.

    For standardised units with correlation `C (n, n)` and the merge matrix `M (m, n)`, these are the diagonal entries
    of `C M^T (M C M^T)^-1 M C`. Units that are constant have NaN.

    Args:
        statistics: moments of the `n` units of all models, pooled over tasks.
        match: merges them into `m` units.
    """
    covariance = statistics.moments.covariance
    deviation = covariance.diagonal().sqrt()
    alive = deviation > 1e-6 * deviation.max()
    scale = torch.where(alive, 1 / deviation.clamp(min=1e-30), 0)
    merge = match.aim.merge.to(covariance)
    read = merge @ covariance @ merge.T
    read = read + 1e-6 * read.diagonal().mean() * torch.eye(len(read), dtype=read.dtype, device=read.device)
    cross = (merge @ covariance) * scale  # (m, n)
    shares = (cross * torch.linalg.solve(read, cross)).sum(0)
    return torch.where(alive, shares, torch.nan)


@dataclass(frozen=True)
class Depth:
    """A legal cut.

    Attributes:
        steps: number of merged steps.
        spaces: the spaces that they touch.
        gathers: whether each head gathers its own model's units from the trunk.
    """

    steps: int
    spaces: tuple[str, ...]
    gathers: bool


@dataclass(frozen=True)
class Offer:
    """A cut with the width of each space, the FLOPs, and the share of variance lost.

    Attributes:
        depth: number of merged steps.
        ratios: merged width over one model's width, by space.
        flops: for all tasks, as a multiple of one parent's.
        error: share of variance lost, summed over the trunk's spaces.
    """

    depth: int
    ratios: dict[str, float]
    flops: float
    error: float

    def widths(self, binding: Binding, models: int) -> dict[str, int]:
        """Number of merged units, for the spaces where it differs from one model's.

        Args:
            binding: the spec, with the size of each space.
            models: number of models.
        """
        spaces = (binding.spaces[name] for name in self.ratios)
        widths = {space.name: unit_count(space.size, space.groups, models, self.ratios[space.name]) for space in spaces}
        return {name: width for name, width in widths.items() if width != binding.spaces[name].size}


def spend(budget: float, depths: Sequence[Depth], costs: LayerCosts, errors: Errors) -> Offer:
    """The cut and the widths that lose the least variance within a FLOPs budget.

    For every cut, all spaces start at their smallest width. The step to a larger width that reduces the error most per
    FLOP and still fits is taken repeatedly. Errors are summed over the trunk's spaces; layers after the cut have none.

    Args:
        budget: FLOPs of all tasks, as a multiple of one parent's; never exceeded.
        depths: the legal cuts.
        costs: FLOPs at any cut and widths.
        errors: the share of variance lost, by space and width; a space that cannot change width has one entry.

    Raises:
        OptionError: no cut fits into the budget.
    """
    offers = [offer for depth in depths if (offer := _grown(budget, depth, costs, errors)) is not None]
    if not offers:
        least = min(costs.flops(depth.steps, _smallest(depth, errors), depth.gathers) for depth in depths)
        raise OptionError(f"flops_budget is {budget:g}: these models need at least {math.ceil(1000 * least) / 1000:g}")
    return min(offers, key=lambda offer: (offer.error, offer.flops))


def _smallest(depth: Depth, errors: Errors) -> dict[str, float]:
    """The smallest width of every space of a cut."""
    return {name: min(errors[name]) for name in depth.spaces if name in errors}


def _grown(budget: float, depth: Depth, costs: LayerCosts, errors: Errors) -> Offer | None:
    """The best widths for one cut; `None` if even the smallest ones exceed the budget."""
    ratios = _smallest(depth, errors)
    spent = costs.flops(depth.steps, ratios, depth.gathers)
    if spent > budget + ROUNDING:
        return None
    while True:
        best = 0.0
        move: tuple[str, float, float] | None = None
        for name, ratio in ratios.items():
            for wider in (other for other in errors[name] if other > ratio):
                cost = costs.flops(depth.steps, {**ratios, name: wider}, depth.gathers)
                gain = (errors[name][ratio] - errors[name][wider]) / max(cost - spent, 1e-12)
                if cost <= budget + ROUNDING and gain > best:
                    best = gain
                    move = (name, wider, cost)
        if move is None:
            return Offer(depth.steps, ratios, spent, sum(errors[name][ratio] for name, ratio in ratios.items()))
        name, wider, spent = move
        ratios[name] = wider

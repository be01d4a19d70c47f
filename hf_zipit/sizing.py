"""How deep and how wide a merge is: a cut and widths as the user gives them, or as a budget of FLOPs allows."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from hf_zipit.assembly import Plan
from hf_zipit.chain import resolve_cut
from hf_zipit.errors import OptionError
from hf_zipit.matching.match import Match
from hf_zipit.matching.methods import Options
from hf_zipit.matching.widen import check_ratio, unit_count
from hf_zipit.source import Source
from hf_zipit.spaces import Binding
from hf_zipit.statistics import SpaceStatistics
from hf_zipit.widths import GRID, Costs, free_spaces, spend, unexplained

_log = logging.getLogger("hf_zipit")

Widths = dict[str, int]  # merged units by space, where they are not as many as one model has
MatchAll = Callable[[Plan, Options, Widths], dict[str, Match]]
StatisticsOf = Callable[[Iterable[str]], dict[str, SpaceStatistics]]


def touched_spaces(plan: Plan, state: Mapping[str, Tensor]) -> set[str]:
    """The spaces that the trunk touches."""
    rows = plan.binding.rows(plan.touched(state)).values()
    return {row.space for mine in rows for row in mine}


def size_merge(
    sources: Sequence[Source],
    binding: Binding,
    options: Options,
    cut: str | None,
    match: MatchAll,
    statistics: StatisticsOf,
) -> tuple[Plan, Widths]:
    """Where a merge is cut, and which spaces are not as wide as in one model.

    Args:
        sources: the models.
        binding: their spec.
        options: `width` or `flops_budget`.
        cut: as the user named it; with a budget, `None` leaves it to the budget.
        match: matches the spaces of a plan with given widths.
        statistics: the statistics of the named spaces.

    Raises:
        OptionError: a width or budget that these models, or the method, cannot have.
    """
    check_ratio("width", options.width, sources)
    if options.flops_budget is not None:
        return _within_budget(sources, binding, options, cut, match, statistics)
    plan = Plan(binding, resolve_cut(binding, cut), cut)
    if options.width == 1:
        return plan, {}
    free = free_spaces(sources[0].model, binding, sources[0].input_size)
    return plan, _at(options.width, touched_spaces(plan, sources[0].model.state_dict()) & free, binding, len(sources))


def _at(ratio: float, names: Iterable[str], binding: Binding, models: int) -> Widths:
    spaces = [binding.spaces[name] for name in sorted(names)]
    return {space.name: unit_count(space.size, space.groups, models, ratio) for space in spaces}


def _within_budget(
    sources: Sequence[Source],
    binding: Binding,
    options: Options,
    cut: str | None,
    match: MatchAll,
    statistics: StatisticsOf,
) -> tuple[Plan, Widths]:
    if not options.needs_statistics:
        raise OptionError(f"flops_budget reads activations, and method '{options.method}' does not: give a width")
    first, models, budget = sources[0], len(sources), options.flops_budget or 1.0
    state, plans = first.model.state_dict(), _plans(binding, cut)
    names = {depth: touched_spaces(plan, state) for depth, plan in plans.items()}
    deepest = plans[max(plans)]
    free = free_spaces(first.model, binding, first.input_size) & names[deepest.depth]
    seen = statistics(names[deepest.depth])
    ratios = [1.0] if not free else [i / GRID for i in range(GRID if budget >= 1 else 2, GRID * models + 1)]
    errors: dict[str, dict[float, float]] = {name: {} for name in seen}
    for ratio in ratios:
        for name, found in match(deepest, options, _at(ratio, free, binding, models)).items():
            if name in seen and (name in free or ratio == 1):
                errors[name][ratio] = unexplained(seen[name], found)
    costs = Costs(first.model, binding, models, first.input_size)
    depths = {depth: (names[depth], not plan.whole and plan.gathers) for depth, plan in plans.items()}
    offer = spend(budget, depths, costs, binding, errors)
    plan = plans[offer.depth]
    _log.info("for %.2fx FLOPs: cut %s, widths %s", offer.flops, plan.cut or "before the classifiers", offer.widths)
    return plan, {name: width for name, width in offer.widths.items() if name in free}


def _plans(binding: Binding, cut: str | None) -> dict[int, Plan]:
    """The cuts that a budget may choose from: the one named, or all."""
    last = resolve_cut(binding, None)
    if cut is not None or not last:
        depth = resolve_cut(binding, cut)
        return {depth: Plan(binding, depth, cut)}
    depths = {binding.steps.index(step) + 1: step for step in binding.cuts}
    return {depth: Plan(binding, depth, None if depth == last else step) for depth, step in depths.items()}

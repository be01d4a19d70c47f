"""How deep and how wide a merge is: a cut and widths as the user gives them, or as a budget of FLOPs allows."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from hf_zipit.assembly.plan import Plan
from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import Options
from hf_zipit.matching.widen import check_ratio, unit_count
from hf_zipit.merging.budget import GRID, Costs, free_spaces, spend, unexplained
from hf_zipit.sources.source import Source
from hf_zipit.specs.cuts import resolve_cut
from hf_zipit.specs.spaces import Binding
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.match import Match

_log = logging.getLogger("hf_zipit")

Widths = dict[str, int]  # merged units by space, where they are not as many as one model has


def touched_spaces(plan: Plan, state: Mapping[str, Tensor]) -> set[str]:
    """The spaces that the trunk touches."""
    rows = plan.binding.rows(plan.touched(state)).values()
    return {row.space for mine in rows for row in mine}


@dataclass(frozen=True)
class Sizing:
    """What the depth and the widths of a merge are chosen from.

    Args:
        sources: the models.
        binding: their spec.
        match: matches the spaces of a plan with given widths.
        statistics: the statistics of the named spaces, as `compat` or not.
    """

    sources: Sequence[Source]
    binding: Binding
    match: Callable[[Plan, Options, Widths], dict[str, Match]]
    statistics: Callable[[Iterable[str], bool], dict[str, SpaceStatistics]]

    def plan(self, options: Options, cut: str | None) -> tuple[Plan, Widths]:
        """Where a merge is cut, and which spaces are not as wide as in one model.

        Args:
            options: `width` or `flops_budget`.
            cut: as the user named it; with a budget, `None` leaves it to the budget.

        Raises:
            OptionError: a width or budget that these models, or the method, cannot have.
        """
        check_ratio("width", options.width, self.sources)
        if options.flops_budget is not None:
            return self._within(options.flops_budget, options, cut)
        plan = Plan(self.binding, resolve_cut(self.binding, cut), cut)
        return plan, {} if options.width == 1 else self._at(options.width, self._touched(plan) & self._free)

    def _within(self, budget: float, options: Options, cut: str | None) -> tuple[Plan, Widths]:
        if not options.needs_statistics:
            raise OptionError(f"flops_budget reads activations, and method '{options.method}' does not: give a width")
        plans, models = self._plans(cut), len(self.sources)
        names = {depth: self._touched(plan) for depth, plan in plans.items()}
        deepest = plans[max(plans)]
        free = self._free & names[deepest.depth]
        seen = self.statistics(names[deepest.depth], options.compat)
        ratios = [1.0] if not free else [i / GRID for i in range(GRID if budget >= 1 else 2, GRID * models + 1)]
        errors: dict[str, dict[float, float]] = {name: {} for name in seen}
        for ratio in ratios:
            widths = self._at(ratio, free)
            for name, found in self.match(deepest, options, widths).items():
                if name in seen and (name in free or ratio == 1):
                    size = self.binding.spaces[name].size
                    errors[name][widths.get(name, size) / size] = unexplained(seen[name], found)
        costs = Costs(self.sources, self.binding)
        depths = {depth: (names[depth], not plan.whole and plan.gathers) for depth, plan in plans.items()}
        full = costs.flops(deepest.depth, {}, gathers=False)
        if 1 <= budget < full and deepest.depth == resolve_cut(self.binding, None):
            _log.warning("a full merge costs %.3fx, with its classifiers: that is the budget", full)
            budget = full
        offer = spend(budget, depths, costs, self.binding, errors)
        plan = plans[offer.depth]
        where = plan.cut or "before the classifiers"
        _log.info("for %.2fx FLOPs: cut %s, widths %s", offer.flops, where, offer.widths)
        sizes = {name: self.binding.spaces[name].size for name in free}
        return plan, {name: width for name, width in offer.widths.items() if width != sizes.get(name, width)}

    def _plans(self, cut: str | None) -> dict[int, Plan]:
        """The cuts that a budget may choose from: the one named, or all."""
        binding, last = self.binding, resolve_cut(self.binding, None)
        if cut is not None or not last:
            depth = resolve_cut(binding, cut)
            return {depth: Plan(binding, depth, cut)}
        depths = {binding.steps.index(step) + 1: step for step in binding.cuts}
        return {depth: Plan(binding, depth, None if depth == last else step) for depth, step in depths.items()}

    def _touched(self, plan: Plan) -> set[str]:
        return touched_spaces(plan, self.sources[0].model.state_dict())

    def _at(self, ratio: float, names: Iterable[str]) -> Widths:
        spaces, models = [self.binding.spaces[name] for name in sorted(names)], len(self.sources)
        widths = {space.name: unit_count(space.size, space.groups, models, ratio) for space in spaces}
        return {space.name: widths[space.name] for space in spaces if widths[space.name] != space.size}

    @cached_property
    def _free(self) -> set[str]:
        """The spaces that can have another width."""
        return free_spaces(self.sources[0].model, self.binding, self.sources[0].input_size)

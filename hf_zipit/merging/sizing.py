"""Depth and width of a merge: as given by the user, or as chosen under a FLOPs budget."""

import logging
from collections.abc import Callable, Iterable

from hf_zipit.assembly.parents import Parents
from hf_zipit.costs import runs_at
from hf_zipit.errors import OptionError
from hf_zipit.heads.plan import with_heads
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.widen import unit_count
from hf_zipit.merging.budget import GRID, HALF, Depth, free_spaces, spend, unexplained
from hf_zipit.merging.dense import check_dense
from hf_zipit.recipe import Recipe
from hf_zipit.specs.plan import Plan
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.heads import Matches
from hf_zipit.transform.match import Match

_log = logging.getLogger("hf_zipit")

Matched = Callable[[Plan, Recipe], Matches]
Observed = Callable[[Iterable[str], bool], dict[str, SpaceStatistics]]


def sized_plan(parents: Parents, recipe: Recipe) -> Plan:
    """The plan of a merge at a given cut and width; a FLOPs budget is ignored, because it needs images.

    Raises:
        OptionError: an unknown cut, or a width that these models cannot have.
    """
    check_width("width", recipe.width, len(parents.sources))
    check_unequal(parents, recipe)
    check_paired(parents, recipe)
    plan = parents.plan(recipe.cut)
    if recipe.how.dense:
        check_dense(parents, plan, recipe)
    parent = recipe.how.settings.get("parent")
    if parent is not None:
        plan = parents.plan(recipe.cut, _widths_of(parents, parents.spaces(plan), parent))
    elif recipe.width != 1 or parents.binding.unequal:
        widths = _widths(parents, recipe.width, _free(parents, recipe) & parents.spaces(plan))
        plan = _checked(parents, parents.plan(recipe.cut, widths), f"width is {recipe.width:g}")
    return _with_heads(parents, plan, recipe)


def budget_plan(parents: Parents, recipe: Recipe, match: Matched, observe: Observed) -> Plan:
    """The plan with the cut and widths that lose the least variance within a FLOPs budget.

    Args:
        parents: the models.
        recipe: has a `flops_budget`; its cut is used if it has one.
        match: matches the spaces of a plan.
        observe: returns the statistics of the named spaces, given whether to follow the authors' code (`compat`).

    Raises:
        OptionError: the method does not read activations, the cut is unknown, or the budget is too small.
    """
    budget = recipe.flops_budget
    assert budget is not None
    check_unequal(parents, recipe)
    check_paired(parents, recipe)
    if not recipe.needs_statistics:
        raise OptionError(f"flops_budget reads activations, but method '{recipe.method}' does not; give a width")
    plans = _plans(parents, recipe.cut or parents.fixed_cut)  # a merge with a cut can only be merged again at that cut
    deepest = max(plans, key=lambda plan: plan.depth)
    names = parents.spaces(deepest)
    free = _free(parents, recipe) & names
    seen = observe(names, recipe.compat)
    errors: dict[str, dict[float, float]] = {name: {} for name in seen}
    for ratio in _grid(budget, bool(free), len(parents.sources)):
        plan = parents.plan(deepest.cut, _widths(parents, ratio, free))
        for name, found in match(plan, recipe).items():
            if name in seen and isinstance(found, Match) and (name in free or ratio == 1):
                size = parents.binding.spaces[name].size
                errors[name][found.width / size] = unexplained(seen[name], found)
    costs = parents.layer_costs()
    full = costs.flops(deepest.depth, {}, gathers=False)
    if parents.joint and 1 <= budget < full and deepest.depth == parents.depth(None):
        _log.warning("flops_budget raised to %.3f, the cost of a full merge with the classifiers of all tasks", full)
        budget = full
    depths = [_depth(parents, plan, errors) for plan in plans]
    offer = spend(budget, depths, costs, errors)
    chosen = next(plan for plan in plans if plan.depth == offer.depth)
    widths = offer.widths(parents.binding, len(parents.sources))
    where = chosen.cut or "before the classifiers"
    _log.info("for %.2fx FLOPs: cut %s, widths %s", offer.flops, where, widths)
    plan = Plan(parents.binding, chosen.depth, chosen.cut, widths)
    return _with_heads(parents, _checked(parents, plan, f"flops_budget is {budget:g}"), recipe)


def _with_heads(parents: Parents, plan: Plan, recipe: Recipe) -> Plan:
    """The plan with the heads of all models kept, if the recipe says so and the models allow it."""
    size, models = parents.input_size, len(parents.sources)
    found = with_heads(plan, parents.spaces(plan), recipe.options, parents.reference.model, size, models)
    if models == 1 and recipe.shrinks and not found.widths:
        what = (
            f"width is {recipe.width:g}" if recipe.flops_budget is None else f"flops_budget is {recipe.flops_budget:g}"
        )
        raise OptionError(f"{what}: no feature space of this model becomes smaller; give a smaller number")
    return found


def _checked(parents: Parents, plan: Plan, what: str) -> Plan:
    """The plan, if the models run with its widths: some layers take only multiples of a number of channels."""
    if runs_at(parents.reference.model, parents.binding, plan.ratios, parents.input_size):
        return plan
    shown = ", ".join(f"{name}: {width}" for name, width in list(plan.widths.items())[:4])
    whose = "this model does" if len(parents.sources) == 1 else "these models do"
    raise OptionError(f"{what}: {whose} not run with the units that it gives ({shown}); try another one")


def check_width(name: str, value: float, models: int) -> None:
    """Check that a width is positive and at most the number of models.

    Args:
        name: name of the option.
        value: merged units per unit of one model.
        models: number of models.

    Raises:
        OptionError: the width is not positive, or too large.
    """
    if not 0 < value <= models:
        raise OptionError(f"{name} is {value:g}: it must be above 0 and at most {models}, the number of models")


def check_unequal(parents: Parents, recipe: Recipe) -> None:
    """Refuse options that models of different widths do not allow.

    Args:
        parents: the models.
        recipe: the options.

    Raises:
        OptionError: the method matches unit i with unit i, or compares weights one by one; or an option needs models of
            one width.
    """
    unequal = parents.binding.unequal
    if not unequal:
        return
    space = parents.binding.spaces[unequal[0]]
    sizes = ", ".join(map(str, space.sizes(len(parents.sources))))
    said = f"the models have different widths ({space.name}: {sizes} units)"
    if not recipe.how.unequal:
        able = ", ".join(name for name, method in METHODS.items() if method.unequal)
        raise OptionError(f"method is '{recipe.method}', but {said}; methods for these: {able}")
    if recipe.compat:
        raise OptionError(f"compat follows code for models of one width, but {said}; leave it out")
    if recipe.flops_budget is not None:
        raise OptionError(f"flops_budget compares with one parent, but {said}; give a width and a cut")


def check_paired(parents: Parents, recipe: Recipe) -> None:
    """Refuse wider merges of three or more models by methods that choose among the pairs of two.

    Args:
        parents: the models.
        recipe: the options.

    Raises:
        OptionError: the method makes wider merges of two models only, and there are more.
    """
    models = len(parents.sources)
    if recipe.how.paired and models > 2 and (recipe.width != 1 or recipe.flops_budget is not None):
        raise OptionError(
            f"method '{recipe.method}' chooses which units of two models stay apart, and these are {models} models: "
            "use permute, or leave out the width"
        )


def _widths_of(parents: Parents, names: Iterable[str], parent: int) -> dict[str, int]:
    """The number of units of one parent, for those of the named spaces where it differs from the widest one's."""
    spaces = [parents.binding.spaces[name] for name in sorted(names)]
    last = len(parents.sources) - 1
    sizes = {space.name: space.of(last if parent < 0 else parent).size for space in spaces}
    return {space.name: sizes[space.name] for space in spaces if sizes[space.name] != space.size}


def _plans(parents: Parents, cut: str | None) -> list[Plan]:
    """The candidate cuts for a budget: the given one, or all."""
    binding = parents.binding
    last = parents.depth(None)
    if cut is not None or not last or len(parents.sources) == 1:  # one model has nothing to gain from layers left apart
        return [parents.plan(cut)]
    depths = {step: binding.steps.index(step) + 1 for step in binding.cuts}
    return [Plan(binding, depth, None if depth == last else step) for step, depth in depths.items()]


def _grid(budget: float, any_free: bool, models: int) -> list[float]:
    """The widths to try, relative to one model's."""
    if not any_free:
        return [1.0]
    smallest = GRID if budget >= 1 else 2
    return [number / GRID for number in range(smallest, GRID * models + 1)]


def _depth(parents: Parents, plan: Plan, errors: Iterable[str]) -> Depth:
    """The cut of a plan, with those of its spaces that have errors."""
    touched = parents.spaces(plan)
    return Depth(plan.depth, tuple(name for name in errors if name in touched), parents.gathers(plan))


def _widths(parents: Parents, ratio: float, names: Iterable[str]) -> dict[str, int]:
    """Number of merged units, for those of the named spaces where it differs from the reference model's."""
    spaces = [parents.binding.spaces[name] for name in sorted(names)]
    models = len(parents.sources)
    largest = max((space.size // space.groups for space in spaces), default=0)
    if largest and round(ratio * largest) == 0:  # every space keeps one unit at least
        raise OptionError(f"width is {ratio:g}: not one of the {largest} units of the largest feature space is left")
    sizes = {space.name: space.sizes(models) for space in spaces}
    counts = {space.name: unit_count(max(sizes[space.name]), space.groups, models, ratio) for space in spaces}
    widths = {name: min(count, sum(sizes[name])) for name, count in counts.items()}
    return {space.name: widths[space.name] for space in spaces if widths[space.name] != space.size}


def _free(parents: Parents, recipe: Recipe) -> set[str]:
    """The spaces that can change width as the recipe asks."""
    ratio = HALF if recipe.shrinks else 1 / HALF
    return free_spaces(parents.reference.model, parents.binding, parents.input_size, ratio)

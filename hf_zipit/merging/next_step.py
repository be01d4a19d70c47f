"""What to try next if a merge is not good enough: a cut or a width, with what it costs, or more images."""

from hf_zipit.data.draw import USEFUL
from hf_zipit.errors import OptionError
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.specs.plan import Plan

ROUNDING = 0.01  # FLOPs, as a multiple of one parent's, that do not count
WIDER = 1.25  # times the present width
AFFORDABLE = 1.5  # FLOPs of a merge with a cut, as a multiple of one parent's


def next_steps(merger: Merger, recipe: Recipe) -> str:
    """What to try, most promising first, as part of a sentence.

    Args:
        merger: the models and their images.
        recipe: the options of the merge that is not good enough.
    """
    steps = [step for step in (_cut(merger, recipe), _width(merger, recipe)) if step is not None]
    if merger.passes.images and max(map(len, merger.passes.images)) < USEFUL:
        steps.append("more images")
    if len(merger.parents.sources) == 1:
        return ", or ".join(steps) or "a larger width, or method select and calibrate refit"
    if not steps:
        return "models that have more in common"
    return f"{', or '.join(steps)}; hf-zipit diagnose tries cuts and widths on few images"


def _cut(merger: Merger, recipe: Recipe) -> str | None:
    """An earlier cut: the dearest that is affordable, or else the cheapest; `None` if there is none."""
    parents = merger.parents
    if any(source.trunk for source in parents.sources):  # merges with a cut can only be merged again at that cut
        return None
    costs = parents.layer_costs()
    binding = parents.binding
    one = "the widest model" if binding.unequal else "one model"

    def flops_of(plan: Plan) -> float:
        if binding.unequal:
            return parents.cost(merger.tasks, plan).flops / parents.unit.flops
        return costs.flops(plan.depth, {}, parents.gathers(plan))

    earlier = []
    for step in binding.cuts:
        depth = binding.steps.index(step) + 1
        if depth < parents.depth(recipe.cut):
            earlier.append((flops_of(Plan(binding, depth, step, {})), step))
    dearer = [(flops, step) for flops, step in earlier if flops > 1 + ROUNDING]
    if not dearer:
        return None
    within = [entry for entry in dearer if entry[0] <= AFFORDABLE]
    flops, step = max(within) if within else min(dearer)
    return f"--cut {step} ({flops:.2f} times the FLOPs of {one})"


def _width(merger: Merger, recipe: Recipe) -> str | None:
    """A larger width; `None` if these models cannot have it, or nothing would be wider."""
    parents = merger.parents
    width = recipe.width * WIDER
    if recipe.flops_budget is not None or width > len(parents.sources):
        return None
    try:
        plans = [merger.plan(recipe.changed(width=one)) for one in (recipe.width, width)]
    except OptionError:
        return None
    now, then = (parents.cost(merger.tasks, plan).flops / parents.unit.flops for plan in plans)
    return f"--width {width:g} ({then:.2f} times)" if then > now + ROUNDING else None

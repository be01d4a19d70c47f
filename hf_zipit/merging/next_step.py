"""What to try next if a merge is not good enough: a cut or a width, with what it costs, or more images."""

from hf_zipit.data.draw import USEFUL
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.specs.plan import Plan

WIDER = 1.25  # times the present width
AFFORDABLE = 1.5  # FLOPs of a merge with a cut, as a multiple of one parent's


def next_steps(merger: Merger, recipe: Recipe) -> str:
    """What to try, most promising first, as part of a sentence.

    Args:
        merger: the models and their images.
        recipe: the options of the merge that is not good enough.
    """
    parents = merger.parents
    costs = parents.layer_costs()
    present = parents.depth(recipe.cut)
    steps = []
    if not any(source.trunk for source in parents.sources):
        options = []
        for step in parents.binding.cuts:
            depth = parents.binding.steps.index(step) + 1
            plan = Plan(parents.binding, depth, step, {})
            options.append((costs.flops(depth, {}, parents.gathers(plan)), step, depth))
        less = [(flops, step) for flops, step, depth in options if depth < present]
        within = [entry for entry in less if entry[0] <= AFFORDABLE] or less[-1:]
        if within:
            flops, step = max(within)
            steps.append(f"--cut {step} ({flops:.2f} times the FLOPs of one model)")
    if recipe.flops_budget is None and recipe.width * WIDER <= len(parents.sources):
        steps.append(f"--width {recipe.width * WIDER:g} (about {(recipe.width * WIDER) ** 2:.2f} times)")
    if merger.passes.images and max(map(len, merger.passes.images)) < USEFUL:
        steps.append("more images")
    return ", or ".join(steps) or "models that have more in common"

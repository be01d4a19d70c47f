"""The cuts and widths that a diagnosis tries, and what they cost."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_zipit.errors import OptionError
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.specs.cuts import cut_names

FULL = "full merge"
CUTS = 4  # cuts to try besides a full merge, at most
WIDTHS = (1.125, 1.25, 1.5)
MOST = 0.9  # of the cost of all models, above which a merge saves nothing


@dataclass(frozen=True)
class Candidate:
    """A way to merge.

    Attributes:
        name: as a user would ask for it.
        recipe: its options.
        flops: of one image for all tasks, as a multiple of one parent's.
    """

    name: str
    recipe: Recipe
    flops: float


def candidates(merger: Merger, recipe: Recipe) -> list[Candidate]:
    """A full merge, the widths that these models can have, and cuts at the ends of stages, late ones first.

    Args:
        merger: the models.
        recipe: the options of a full merge; its cut is `None`, or that of a merge among the models.
    """
    found = [_candidate(merger, FULL, recipe)]
    parents = merger.parents
    all_models = sum(cost.flops for cost in parents.costs) / parents.unit.flops
    limit = MOST * (all_models if parents.binding.unequal else len(parents.sources))
    for width in WIDTHS:
        try:
            wider = _candidate(merger, f"--width {width:g}", recipe.changed(width=width))
        except OptionError:  # these models, or this method, cannot have the width
            continue
        if found[0].flops * 1.01 < wider.flops < limit:  # else nothing can be wider, or nothing is saved
            found.append(wider)
    if recipe.cut is not None:  # of a merge among the models, which can be merged again at that cut only
        return found
    for names in (ends_of_stages(merger), list(cut_names(parents.binding))):
        cuts = [_candidate(merger, f"--cut {cut}", recipe.changed(cut=cut)) for cut in names]
        useful = _useful(cuts, found[0].flops, limit)
        if useful:
            break
    return found + _spread(useful, CUTS)


def _useful(cuts: Sequence[Candidate], full: float, limit: float) -> list[Candidate]:
    """The cuts whose costs differ from each other and from a full merge, late ones first."""
    known = {round(full, 2)}  # a cut at the same cost leaves the tasks no layer that counts
    useful = []
    for cut in reversed(cuts):
        if round(cut.flops, 2) not in known and cut.flops < limit:
            useful.append(cut)
            known.add(round(cut.flops, 2))
    return useful


def ends_of_stages(merger: Merger) -> list[str]:
    """The cuts that end a stage, in order, the last legal cut among them; all cuts if no stage has several steps."""
    names = cut_names(merger.parents.binding)
    ends = [stage or step for step, stage in names.items() if stage is not None or step == list(names)[-1]]
    return ends if len(ends) > 2 else list(names)


def _spread(items: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most so many items, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def _candidate(merger: Merger, name: str, recipe: Recipe) -> Candidate:
    """A candidate with its cost."""
    plan = merger.plan(recipe)
    cost = merger.parents.cost(merger.tasks, plan).flops
    return Candidate(name, recipe, cost / merger.parents.unit.flops)

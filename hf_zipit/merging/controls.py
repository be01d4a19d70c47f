"""The control that every merge must beat: the trunk of one parent, with the heads of all tasks fitted to it."""

import torch

from hf_zipit.assembly.parents import Merged
from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.heads import refit_heads
from hf_zipit.matching.controls import parent_match
from hf_zipit.merging.merger import Merger


@torch.no_grad()
def one_trunk(merger: Merger, parent: int) -> Merged:
    """A merge that keeps the trunk of one parent as it is. Only the heads are fitted, by ridge regression.

    Args:
        merger: the models and their images.
        parent: the number of the model whose trunk is kept.
    """
    parents = merger.parents
    plan = parents.plan(parents.fixed_cut)
    count = len(parents.sources)
    spaces = [parents.binding.spaces[name] for name in parents.spaces(plan)]
    matches = {space.name: parent_match(space.sizes(count), space.groups, parent) for space in spaces}
    merged = parents.assemble(merger.tasks, plan, matches, {})
    merged.to(merger.passes.device)
    refit_heads(MergeState(merged, parents.sources, plan, matches, merger.passes, merger.recipe.seed))
    merged.to("cpu").eval()
    return merged

"""The scale of a merged difference: the one whose merge answers most like the parents, without labels."""

import logging
import math
from collections.abc import Callable, Mapping

from hf_zipit.assembly.parents import Merged, Parents
from hf_zipit.data.batches import Passes
from hf_zipit.evaluation.agreement import compare_answers
from hf_zipit.recipe import Recipe

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
TOGETHER = 5  # merges that are held at a time, so that the parents answer once for all of them
SUMS = ("task-arithmetic", "dare")  # methods whose merged difference grows with the number of models
_log = logging.getLogger("hf_zipit")


def unseen_scale(recipe: Recipe, models: int) -> float:
    """The scale without any images to choose one on.

    Args:
        recipe: the options.
        models: number of models.

    >>> unseen_scale(Recipe(method="task-arithmetic"), 4)
    0.25
    """
    return 1 / models if recipe.method in SUMS else 1.0


def chosen_scale(
    recipe: Recipe,
    parents: Parents,
    passes: Passes,
    merge: Callable[[Recipe], Merged],
    near: Callable[[Merged], float],
) -> float:
    """The scale whose merge, before any refit, keeps most of the parents' accuracy or is nearest to their outputs.

    Args:
        recipe: the options; its scale is ignored.
        parents: the models.
        passes: over the images that decide; held-out ones, if there are any.
        merge: makes a merge.
        near: how near a merge is to the models, where they do not predict one class of several each.
    """
    scores: dict[float, float] = {}
    for start in range(0, len(SCALES), TOGETHER):
        some = SCALES[start : start + TOGETHER]
        merges = {scale: merge(recipe.changed(scale=scale, calibrate="batchnorm")) for scale in some}
        if parents.predicts_jointly:
            scores |= _kept(merges, parents, passes)
        else:
            scores |= {scale: near(merged) for scale, merged in merges.items()}
    known = {scale: value for scale, value in scores.items() if not math.isnan(value)}
    if not known:
        return unseen_scale(recipe, len(parents.sources))
    best = max(known, key=known.__getitem__)
    _log.info("scale %g chosen among %s", best, {scale: round(value, 4) for scale, value in scores.items()})
    return best


def _kept(merges: Mapping[float, Merged], parents: Parents, passes: Passes) -> dict[float, float]:
    """The share of the parents' accuracy that each merge should keep, on average; NaN if no image counts for a task."""
    found = compare_answers({str(scale): merged for scale, merged in merges.items()}, parents.wholes, passes)
    known = found.images > 0
    return {scale: float(found.kept(str(scale), [None] * len(known))[known].mean()) for scale in merges}

"""The scale of a merged difference: the one whose merge answers most like the parents, without labels."""

import logging
import math
from collections.abc import Callable

from hf_zipit.assembly.parents import Merged, Parents
from hf_zipit.data.batches import Passes
from hf_zipit.evaluation.agreement import compare_answers
from hf_zipit.evaluation.fidelity import distance, same_everywhere
from hf_zipit.recipe import Recipe

SCALES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
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


def chosen_scale(recipe: Recipe, parents: Parents, passes: Passes, merge: Callable[[Recipe], Merged]) -> float:
    """The scale whose merge, before any refit, keeps most of the parents' accuracy or is nearest to their outputs.

    Args:
        recipe: the options; its scale is ignored.
        parents: the models.
        passes: over the images that decide; held-out ones, if there are any.
        merge: makes a merge.
    """
    made = {scale: merge(recipe.changed(scale=scale, calibrate="batchnorm")) for scale in SCALES}
    if parents.predicts_jointly:
        found = compare_answers({str(scale): one for scale, one in made.items()}, parents.wholes, passes)
        known = found.images > 0
        accuracies = [None] * len(known)
        if not known.any():
            return unseen_scale(recipe, len(parents.sources))
        scores = {scale: float(found.kept(str(scale), accuracies)[known].mean()) for scale in made}
    else:
        errors = {scale: distance(one, parents.wholes, passes).values() for scale, one in made.items()}
        scores = {scale: -sum(task.error for task in tasks) / len(tasks) for scale, tasks in errors.items()}
    scores = {scale: -math.inf if math.isnan(score) else score for scale, score in scores.items()}
    scores = {scale: same_everywhere(passes.accelerator, score) for scale, score in scores.items()}
    best = max(SCALES, key=scores.__getitem__)
    _log.info("scale %g chosen among %s", best, {scale: round(score, 4) for scale, score in scores.items()})
    return best

"""`--method auto` and `--calibrate auto`: what suits these models and images.

The rule is short, because `select` with a refit was best, or within half a point of it, on every pair that we measured
(benchmarks/README.md). Only models of one base have a rival: plain averaging, where no unit has moved. Then both are
made, and the one that answers more like its parents on held-out images is kept. No label is read.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hf_zipit.assembly.parents import Parents
from hf_zipit.data.dataset import Images
from hf_zipit.errors import OptionError
from hf_zipit.matching.registry import AUTO
from hf_zipit.merging.cards import common_base
from hf_zipit.merging.relation import ONE_BASE, OWN, SAME, Relation
from hf_zipit.recipe import Recipe

UNSEEN = "weight-kmeans"  # of one model, without images
FEW = 10  # with fewer images than this, a refit fits noise
NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Choice:
    """What suits some models and images.

    Attributes:
        recipes: one, or several of which the one that is nearest to the parents is to be taken.
        reasons: why, one sentence each.
    """

    recipes: list[Recipe]
    reasons: list[str]


def choose(
    recipe: Recipe, parents: Parents, images: Sequence[Images], related: Relation | None, base: bool = False
) -> Choice:
    """The method and the calibration of a recipe, where they are `auto`.

    Args:
        recipe: the options.
        parents: the models.
        images: the data sets; none if there are none.
        related: how the models are related; `None` of one model.
        base: whether the user gave the model that they were fine-tuned from.

    Raises:
        OptionError: there are no images, and the models have initialisations of their own.
    """
    if related is None:
        return _of_one(recipe, parents, images)
    methods, reasons = [recipe.method], []
    if recipe.method == AUTO:
        methods, why = _methods(recipe, bool(images), related, base)
        named = common_base(parents.wholes) if related.kind == ONE_BASE else None
        reasons += [f"{related}{f'; their cards name {named}' if named else ''}", why]
    calibrate = recipe.calibrate
    if calibrate == AUTO:
        equal = related.kind == SAME and methods == ["average"]
        calibrate, why = ("none", "none: nothing is lost") if equal else calibration(parents, images)
        reasons.append(why)
    return Choice([recipe.changed(method=method, calibrate=calibrate) for method in methods], reasons)


def _of_one(recipe: Recipe, parents: Parents, images: Sequence[Images]) -> Choice:
    """What suits one model that is to become smaller."""
    reasons = []
    method, calibrate = recipe.method, recipe.calibrate
    if method == AUTO:
        method = "select" if images else UNSEEN
        keeps = (
            "it keeps what the next layers read" if images else "without images, units are compared by their weights"
        )
        reasons.append(f"{method}: {keeps}")
    if calibrate == AUTO and not images:
        calibrate = "repair-weights"
        reasons.append("repair-weights: without images, only the weights tell what variance is lost; images give more")
    elif calibrate == AUTO:
        few = sum(map(len, images)) < FEW
        calibrate, why = calibration(parents, images) if few else ("refit", "refit: to the outputs of the model itself")
        reasons.append(why)
    return Choice([recipe.changed(method=method, calibrate=calibrate)], reasons)


def _methods(recipe: Recipe, images: bool, related: Relation, base: bool) -> tuple[list[str], str]:
    """The methods to try, and why."""
    if not images and related.kind == OWN:
        raise OptionError(f"{related}, so that a merge without images is hardly better than chance: give --data (data)")
    if not images and not _averages(recipe):
        raise OptionError(f"{related}, and without images they can only be averaged, at width 1: give --data (data)")
    based = base and related.kind == ONE_BASE
    if not images and based:
        return [
            "tsv"
        ], "tsv: without images, it is the safest rule for models whose base is known; images would give more"
    if not images:
        return ["average"], "without images, models of one base are averaged; images or the base (--base) give more"
    if related.kind == OWN:
        return ["select"], "select: it keeps what the next layers read, from units that correspond only in part"
    if not _averages(recipe):
        return ["select"], "select: the other options leave no choice"
    if related.kind == SAME:
        return ["average"], "average: equal trunks stay as they are"
    tried = ["select", "tsv" if based else "average"]
    return tried, f"of {' and '.join(tried)}, the one that is nearer to the models on held-out images"


def _averages(recipe: Recipe) -> bool:
    """Whether averaging can have the other options; it takes no width and no budget."""
    try:
        recipe.changed(method="average")
    except OptionError:
        return False
    return recipe.flops_budget is None


def likely(recipe: Recipe) -> Recipe:
    """What a recipe will most likely become, for an estimate of its cost before anything is read."""
    one = len(recipe.sources) == 1
    unseen = UNSEEN if one else "tsv" if recipe.base else "average"
    method = recipe.method if recipe.method != AUTO else "select" if recipe.data else unseen
    calibrate = (
        recipe.calibrate
        if recipe.calibrate != AUTO
        else "refit"
        if recipe.data
        else "repair-weights"
        if one
        else "none"
    )
    return recipe.changed(method=method, calibrate=calibrate) if recipe.automatic else recipe


def calibration(parents: Parents, images: Sequence[Images]) -> tuple[str, str]:
    """The calibration that suits some models and images, and why."""
    normed = any(isinstance(module, NORMS) for module in parents.sources[0].model.modules())
    count = sum(map(len, images))
    if not images:
        return "none", "none: there are no images to calibrate on"
    if count < FEW:
        return ("batchnorm" if normed else "none"), f"no refit: {count} images are too few for it"
    if not parents.predicts_jointly:
        return "refit", "refit: the tasks are not classes to choose among, so there is no joint prediction"
    if len(images) == len(parents.sources) > 1:
        return "refit-joint", "refit-joint: with a data set per model, it is known which images are of other tasks"
    if normed:
        return (
            "refit-joint",
            "refit-joint: parents with batch norms renewed on all images are less sure of foreign ones",
        )
    return "refit", "refit: with one data set and no batch norms, refit-joint would be the same"

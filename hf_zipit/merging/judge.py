"""Judging a merge on held-out images, without labels."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_zipit.assembly.parents import Merged
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.agreement import compare_answers
from hf_zipit.evaluation.fidelity import Distance, distance
from hf_zipit.merging.cards import stated_accuracies
from hf_zipit.merging.controls import one_trunk
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.next_step import next_steps
from hf_zipit.merging.verdict import FEW, MARGIN, TaskVerdict, Verdict
from hf_zipit.recipe import Recipe
from hf_zipit.text import percent

MERGED = "merged"
_log = logging.getLogger("hf_zipit")
POOR = 0.9  # a merge that keeps less of its parents' accuracy is much worse than they are


def judge(merger: Merger, merged: Merged, recipe: Recipe) -> Verdict | None:
    """The verdict on a merge; `None` if no images are held out.

    Args:
        merger: has the models and the held-out images.
        merged: the merge.
        recipe: its options.

    Raises:
        OptionError: `parent_accuracy` has not one number per task.

    >>> judge(merger, merged, recipe).worth_it  # doctest: +SKIP
    True
    """
    if merger.held_out is None:
        return None
    accuracies = accuracies_of(merger, recipe)
    models: dict[str, Merged] = {MERGED: merged}
    several = len(merger.parents.wholes) > 1  # the trunk of one model is that model, which is no control
    for parent in range(len(merger.parents.wholes) if several else 0):
        key = ("one trunk", parent)  # the same for all merges of a merger
        if key not in merger.memo:
            merger.memo[key] = one_trunk(merger, parent)
        models[f"trunk {parent}"] = merger.memo[key]
    find = _of_classes if merger.parents.predicts_jointly else _of_outputs
    return find(merger, models, accuracies, recipe)


def accuracies_of(merger: Merger, recipe: Recipe) -> list[float | None]:
    """The accuracy of the parent of every task: as the recipe states, or else the parents' cards; `None` if unknown.

    Raises:
        OptionError: the recipe states another number of them than there are tasks.
    """
    given = recipe.parent_accuracy
    if given is not None and len(given) != len(merger.tasks):
        raise OptionError(f"parent_accuracy has {len(given)} numbers, but there are {len(merger.tasks)} tasks")
    return list(given) if given is not None else stated_accuracies(merger.parents.wholes)


def _of_classes(
    merger: Merger, models: Mapping[str, Merged], accuracies: Sequence[float | None], recipe: Recipe
) -> Verdict:
    """The verdict where every task predicts one class of several."""
    assert merger.held_out is not None
    found = compare_answers(models, merger.parents.wholes, merger.held_out)
    known = found.images >= FEW if (found.images >= FEW).any() else found.images > 0
    means = {name: float(found.kept(name, accuracies)[known].mean()) for name in models} if known.any() else {}
    if not means:
        raise DataError("the outputs of the models on all held-out images are not finite: check the models and images")
    best = max((name for name in models if name != MERGED), key=means.__getitem__, default=None)
    own, chance = found.agreement(MERGED), found.chance()
    other = None if best is None else found.agreement(best)
    share = found.kept(MERGED, accuracies)
    tasks = {}
    for t, task in enumerate(merger.tasks):
        accuracy = accuracies[t]
        tasks[task] = TaskVerdict(
            images=int(found.images[t]),
            agreement=_rounded(own[t]),
            control=None if other is None else _rounded(other[t]),
            chance=_rounded(chance[t]),
            kept=_rounded(share[t]),
            expected=None if accuracy is None else _rounded(accuracy * share[t]),
        )
    joint = float(found.joint[MERGED] / found.images.sum())
    broken = sum(map(len, merger.held_out.images)) - int(found.images.sum())
    return _judged(merger, tasks, joint, best, means, recipe, broken)


def _of_outputs(
    merger: Merger, models: Mapping[str, Merged], accuracies: Sequence[float | None], recipe: Recipe
) -> Verdict:
    """The verdict where outputs are not one class of several each."""
    assert merger.held_out is not None
    wholes = merger.parents.wholes
    alone = [task for whole in wholes for task in whole.alone()]
    owners = [k for k, whole in enumerate(wholes) for _ in whole.tasks]
    found = {name: distance(model, wholes, merger.held_out) for name, model in models.items()}
    if recipe.parent_accuracy is not None:
        _log.warning("parent_accuracy is not used, as not every task predicts one class of several: leave it out")
    dense = ("image-classification", "image-segmentation")
    classes = [source.kind in dense and source.problem != "regression" for source in alone]

    def near(one: Distance, number: int) -> float:
        return one.agreement if classes[number] else max(0.0, 1 - one.error)

    scores = {name: [near(one, i) for i, one in enumerate(each.values())] for name, each in found.items()}
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    best = max((name for name in models if name != MERGED), key=means.__getitem__, default=None)
    sets = merger.held_out.images
    counts = [len(sets[owner if len(sets) > 1 else 0]) for owner in owners]
    tasks = {}
    for i, task in enumerate(merger.tasks):
        mine = round(scores[MERGED][i], 4)
        theirs = None if best is None else round(scores[best][i], 4)
        tasks[task] = TaskVerdict(counts[i], mine, theirs, None, mine, None)
    return _judged(merger, tasks, None, best, means, recipe)


def _judged(
    merger: Merger,
    tasks: dict[str, TaskVerdict],
    joint: float | None,
    best: str | None,
    means: Mapping[str, float],
    recipe: Recipe,
    broken: int = 0,
) -> Verdict:
    """The verdict with its advice; `best` is the control, and `broken` images have outputs that are not finite."""
    assert merger.held_out is not None
    parent = None if best is None else int(best.removeprefix("trunk "))
    names = iter(merger.tasks)
    owned = [", ".join(next(names) for _ in whole.tasks) for whole in merger.parents.wholes]
    control = None if parent is None else owned[parent]
    images = sum(len(part) for part in merger.held_out.images)
    kept, other = means[MERGED], None if best is None else means[best]
    advice = [
        f"nothing is known of {task}: only {one.images} held-out images look like its own; give images of its kind"
        for task, one in tasks.items()
        if one.images < FEW
    ]
    if broken:
        advice.append(f"{broken} held-out images are left out, because outputs on them are not finite")
    if parent is not None and other is not None and kept < other + MARGIN:
        method = {0: "first-parent", len(merger.parents.wholes) - 1: "last-parent"}.get(parent)
        use = f"--method {method or 'first-parent'} --calibrate refit" + ("" if method else ", with that model first")
        advice.append(
            f"this merge is no better than the trunk of {control} alone with the heads of all tasks fitted to it: it "
            f"keeps {percent(kept)} %, that trunk {percent(other)} %, and a gain below {100 * MARGIN:g} point does "
            f"not count. Simpler and as good: {use}. Or merge less: {next_steps(merger, recipe)}"
        )
    elif kept < POOR:
        worst = min((one.kept, task) for task, one in tasks.items() if one.kept is not None)[1]
        what = "this merge is much worse than its parents" if best else "this model is much worse than the larger one"
        advice.append(f"{what}, most of all on {worst}. Next to try: {next_steps(merger, recipe)}")
    shared = None if joint is None else round(joint, 4)
    spare = None if other is None else round(other, 4)
    return Verdict(images, tasks, shared, control, round(kept, 4), spare, tuple(advice))


def _rounded(value: Any) -> float | None:
    """A number for the record; `None` where there is none."""
    number = float(torch.as_tensor(value))
    return None if math.isnan(number) else round(number, 4)

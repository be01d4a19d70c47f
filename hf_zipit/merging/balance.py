"""Grid search for the balance of weights and activations: by output error without labels, or by accuracy."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hf_zipit.assembly.parents import Merged
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.classification import Classification
from hf_zipit.evaluation.fidelity import same_everywhere
from hf_zipit.matching.registry import AUTO
from hf_zipit.merging.merger import Merger
from hf_zipit.progress import progress
from hf_zipit.recipe import Recipe
from hf_zipit.saving.provenance import Provenance

GRID = tuple(round(0.1 * step, 1) for step in range(1, 10))
_log = logging.getLogger("hf_zipit")
Score = Callable[[Merged], float]


def merge_settled(merger: Merger, recipe: Recipe, data: Any = None) -> tuple[Merged, Recipe]:
    """One merge, and the recipe that made it. What is `auto` in the recipe is chosen first.

    Args:
        merger: the models and their images.
        recipe: the options of the merge.
        data: labelled images for choosing the balance; see `merge_balanced`.

    Raises:
        OptionError, DataError: as `merge_balanced` and `Merger.merge` do.
    """
    if recipe.balance == AUTO:
        merged, recipe = merge_balanced(merger, recipe, recipe.balance_data if data is None else data)
    else:
        merged = merger.merge(recipe)
    made = Provenance.of(merged.config).recipe
    return merged, recipe.changed(method=made["method"], calibrate=made["calibrate"], scale=made["scale"])


def merge_balanced(merger: Merger, recipe: Recipe, data: Any = None) -> tuple[Merged, Recipe]:
    """The best merge over a grid of balances, and the recipe that made it.

    The scores of all balances are recorded in `config.zipit["balance"]`, and the chosen balance in the recipe.

    Args:
        merger: the models and their images.
        recipe: the other options of the merge; its balance is ignored.
        data: labelled images. The balance with the best average accuracy over tasks is chosen (MuDSC, section 4.1).
            Without them, the merge whose outputs are closest to the parents' on the merger's images is chosen.

    Raises:
        OptionError: a model is itself a merge of several tasks, or a task has no accuracy to measure.
        DataError: the labelled images cannot be read or belong to no task.

    >>> merged, chosen = merge_balanced(merger, Recipe(method="mudsc-zip"))  # doctest: +SKIP
    """
    if any(len(source.tasks) != 1 for source in merger.parents.sources):
        raise OptionError("one of the models is a merge, so it has no single output; give balance as a number")
    score = _accuracy(merger, data) if data is not None else merger.nearness
    tried: dict[float, float] = {}
    best: tuple[Merged, Recipe] | None = None
    highest = -math.inf
    for balance in progress(GRID, "Choosing the balance", merger.passes.accelerator):
        mine = recipe.changed(balance=balance, balance_data=None)
        merged = merger.merge(mine)
        found = score(merged)
        tried[balance] = -math.inf if math.isnan(found) else found
        if best is None or tried[balance] > highest:
            best = merged, mine
            highest = tried[balance]
    assert best is not None
    by = "error" if data is None else "accuracy"
    shown = {key: abs(value) for key, value in tried.items()}
    _log.info("balance %g chosen by %s among %s", best[1].balance, by, shown)
    config = best[0].config
    tried_by_name = {f"{key:g}": value for key, value in shown.items()}
    config.zipit = replace(Provenance.of(config), balance={"by": by, "tried": tried_by_name}).to_dict()
    return best


def accuracy_on(merger: Merger, data: Any) -> Classification:
    """The evaluation on labelled images that chooses a balance; data sets given by name are opened once per merger.

    Raises:
        OptionError: a task has no accuracy to measure.
        DataError: the images cannot be read or belong to no task.
    """
    if not merger.parents.joint:
        raise OptionError("balance_data needs classifiers only; leave it out, or give balance as a number")
    key = ("labelled", *data) if isinstance(data, list) and all(isinstance(name, str) for name in data) else None
    if key in merger.memo:
        known: Classification = merger.memo[key]
        return known
    images = merger.open_images(data)
    chosen: dict[str, Any] = {"batch_size": merger.passes.batch_size, "device": str(merger.passes.device)}
    opened = Classification(merger.heads, images, merger.parents.input_size, **chosen)
    if not opened.accuracies:
        raise OptionError("balance_data needs tasks with an accuracy, one is multi-label or a regression; leave it out")
    if key is not None:
        merger.memo[key] = opened
    return opened


def _accuracy(merger: Merger, data: Any) -> Score:
    """A score: the accuracy averaged over tasks."""
    evaluation = accuracy_on(merger, data)

    def score(merged: Merged) -> float:
        average = evaluation.result("merged", merged).average or 0
        return same_everywhere(merger.passes.accelerator, float(average))

    return score

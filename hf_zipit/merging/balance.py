"""The balance of weights and activations, chosen by trying: without labels by the merge's own error, or by accuracy."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from accelerate.utils import broadcast_object_list

from hf_zipit.data.images import open_all
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.classification import Evaluation
from hf_zipit.evaluation.fidelity import distance
from hf_zipit.matching.methods import METHODS, Options
from hf_zipit.merging.merger import Merged, Merger
from hf_zipit.progress import progress

AUTO = "auto"
GRID = tuple(round(0.1 * step, 1) for step in range(1, 10))
_log = logging.getLogger("hf_zipit")
Score = Callable[[Merged], float]


def takes_balance(method: str) -> bool:
    """Whether a method compares both weights and activations."""
    return METHODS[method].weights and METHODS[method].activations


def merge_balanced(
    merger: Merger, options: Options, *, cut: str | None = None, calibrate: str = "batchnorm", data: Any = None
) -> tuple[Merged, Options]:
    """The best merge over a grid of balances, and the options it was made with.

    What was tried is recorded in `config.zipit["balance"]`, and the balance that was chosen in the recipe.

    Args:
        merger: the models.
        options: all else about matching; their balance is not read.
        cut: as for `merge`.
        calibrate: as for `merge`.
        data: labelled images: the balance with the best task average is chosen (MuDSC, section 4.1). By default the
            one whose outputs are nearest to the parents' on the images of the statistics, which needs no labels.

    Raises:
        OptionError: the method has no balance.
        DataError: the labelled images cannot be read or belong to no task.

    >>> merged, options = merge_balanced(merger, Options("mudsc-zip"))  # doctest: +SKIP
    """
    if not takes_balance(options.method):
        known = ", ".join(method for method in METHODS if takes_balance(method))
        raise OptionError(f"the method {options.method} has no balance to choose; methods with one: {known}")
    if any(len(source.tasks) != 1 for source in merger.sources):
        raise OptionError("a merge among the models has no single output to compare with: give the balance as a number")
    if data is not None and merger.shared is not None:
        raise OptionError("not all of these tasks have an accuracy: leave balance_data out, or give the balance")
    score = _accuracy(merger, data) if data is not None else _nearness(merger)
    tried: dict[float, float] = {}
    best: tuple[Merged, Options] | None = None
    for balance in progress(GRID, "Choosing the balance", merger.passes.accelerator):
        mine = replace(options, balance=balance)
        merged = merger.merge(mine, cut=cut, calibrate=calibrate)
        tried[balance] = _same_everywhere(merger, score(merged))
        if best is None or tried[balance] > max(value for key, value in tried.items() if key != balance):
            best = merged, mine
    assert best is not None
    by = "error" if data is None else "accuracy"
    shown = {key: abs(value) for key, value in tried.items()}
    _log.info("balance %g chosen by %s among %s", best[1].balance, by, shown)
    about = best[0].config.zipit or {}
    about["balance"] = {"by": by, "tried": {f"{key:g}": value for key, value in shown.items()}}
    return best


def _nearness(merger: Merger) -> Score:
    """Minus the mean error of the tasks' outputs beside their parents'."""

    def score(merged: Merged) -> float:
        parents = merger.shared.wholes if merger.shared else merger.sources
        found = distance(merged, parents, merger.passes).values()
        return -sum(task.error for task in found) / len(found)

    return score


def _accuracy(merger: Merger, data: Any) -> Score:
    """The mean of the tasks' accuracies."""
    images = open_all(data, len(merger.sources), merger.sources[0].transform, seed=merger.seed, token=merger.token)
    size, device = merger.sources[0].input_size, str(merger.passes.device)
    evaluation = Evaluation(merger.heads, images, size, merger.passes.batch_size, device)

    def score(merged: Merged) -> float:
        (outputs,) = evaluation.outputs([(merged, None)])
        return evaluation.row("merged", outputs, (0, 0)).average

    return score


def _same_everywhere(merger: Merger, score: float) -> float:
    """The main process's score: all must choose alike."""
    shared = [score]
    if merger.passes.accelerator.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]

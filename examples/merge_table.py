"""Shared code of the examples that merge: the comparison of `hf-zipit compare`, including controls."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.report import write_report
from hf_zipit.comparison.run import Comparison
from hf_zipit.evaluation.results import Result
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.registry import AUTO
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe

Save = Callable[[str, Any], None]  # (name for a folder, merged model)
CONTROLS = [name for name, method in METHODS.items() if method.control]


def merging_arguments(parser: argparse.ArgumentParser, cuts: Sequence[str]) -> None:
    """Add the merging options: what is chosen, methods without a cut, and zip at every cut, with every calibration."""
    parser.add_argument("--methods", nargs="+", default=["average", "permute", "zip", "select", *CONTROLS])
    parser.add_argument("--cuts", nargs="*", default=list(cuts), help="partial zips")
    parser.add_argument("--calibrate", nargs="+", default=["batchnorm", "refit"])
    parser.add_argument("--num-images", type=int, default=500, help="unlabelled images per data set")


def compared(merger: Merger, args: argparse.Namespace, test: Any, save: Save | None = None) -> list[Result]:
    """Merge and evaluate, and write a report to a folder in `args.out`.

    Args:
        merger: Models and images for the statistics.
        args: `out` and the options of `merging_arguments`.
        test: Labelled images, as for `evaluate`.
        save: Called with a folder name and the merged model, for each merge that is not a control.

    Returns:
        A row for each merge, then the parents and their ensemble.
    """

    def keep(recipe: Recipe, merged: Any) -> None:
        if save and recipe.method not in CONTROLS:
            parts = [recipe.method, recipe.cut, "" if recipe.calibrate == "batchnorm" else recipe.calibrate]
            save("-".join(part for part in parts if part), merged)

    wanted = Grid([AUTO], calibrations=[AUTO]).recipes(merger)
    wanted += Grid(args.methods, calibrations=args.calibrate).recipes(merger)
    wanted += Grid(["zip"], args.cuts, args.calibrate).recipes(merger)
    folder = args.out / "-".join(["comparison", *merger.tasks])
    rows = Comparison(merger, folder, test, save=keep).run(wanted)
    write_report(rows, merger.tasks, folder)
    return rows

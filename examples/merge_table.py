"""What the examples that merge have in common: the same comparison, controls included, as `hf-zipit compare` makes."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from hf_zipit.comparison.grid import Trial, trials
from hf_zipit.comparison.report import write_report
from hf_zipit.comparison.run import Comparison, Result
from hf_zipit.matching.methods import METHODS, Options
from hf_zipit.merging.merger import Merger

Save = Callable[[str, Any], None]  # (name for a folder, merged model)
CONTROLS = [name for name, method in METHODS.items() if method.control]


def merging_arguments(parser: argparse.ArgumentParser, cuts: Sequence[str]) -> None:
    """The options of the table: every method in all layers, and zip up to every cut, with every calibration."""
    parser.add_argument("--methods", nargs="+", default=["average", "permute", "zip", *CONTROLS])
    parser.add_argument("--cuts", nargs="*", default=list(cuts), help="partial zips")
    parser.add_argument("--calibrate", nargs="+", default=["batchnorm", "refit"])
    parser.add_argument("--num-images", type=int, default=500, help="unlabelled images of each data set")


def compared(merger: Merger, args: argparse.Namespace, test: Any, save: Save | None = None) -> list[Result]:
    """A row for each merge, then the parents and their ensemble; the report is a folder in OUT.

    Args:
        merger: the models and the images for the statistics.
        args: `out` and those of `merging_arguments`.
        test: labelled images, as for `evaluate`.
        save: called with each merged model that is not a control.
    """

    def keep(trial: Trial, merged: Any) -> None:
        if save and trial.options.method not in CONTROLS:
            parts = [trial.options.method, trial.cut, "" if trial.calibrate == "batchnorm" else trial.calibrate]
            save("-".join(part for part in parts if part), merged)

    wanted = trials(merger, args.methods, [None], args.calibrate, Options())
    wanted += trials(merger, ["zip"], args.cuts, args.calibrate, Options())
    folder = args.out / "-".join(["comparison", *merger.tasks])
    rows = Comparison(merger, folder, test, save=keep).run(wanted)
    write_report(rows, merger.tasks, folder)
    return rows

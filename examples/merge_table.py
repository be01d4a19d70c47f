"""Several merges of the same models, opened once, as rows of one table: methods, partial zips, calibrations."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_zipit.evaluation import Row, evaluate
from hf_zipit.matching.methods import Options
from hf_zipit.merger import Merger

Keep = Callable[[str, Any], None]  # (name for a folder, merged model)


@dataclass(frozen=True)
class Setting:
    """One way to merge."""

    method: str
    cut: str | None
    calibrate: str

    def __str__(self) -> str:
        cut = f", cut after {self.cut}" if self.cut else ""
        return self.method + cut + ("" if self.calibrate == "batchnorm" else f", {self.calibrate}")

    @property
    def slug(self) -> str:
        """A name for a folder."""
        return str(self).replace(", cut after ", "-").replace(", ", "-")


def merging_arguments(parser: argparse.ArgumentParser, cuts: Sequence[str]) -> None:
    """The options of the table: every method in all layers, zip up to every cut, zip with every calibration."""
    parser.add_argument("--methods", nargs="+", default=["average", "permute", "zip"])
    parser.add_argument("--cuts", nargs="*", default=list(cuts), help="partial zips")
    parser.add_argument("--calibrate", nargs="+", default=["batchnorm"], help="for zip; the others take the first")
    parser.add_argument("--num-images", type=int, default=500, help="unlabelled images of each data set")


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """The settings that the options ask for."""
    first, *others = args.calibrate
    found = [Setting(method, None, first) for method in args.methods]
    found += [Setting("zip", None, calibrate) for calibrate in others]
    return found + [Setting("zip", cut, calibrate) for cut in args.cuts for calibrate in args.calibrate]


def merge_rows(merger: Merger, test: Any, settings: Sequence[Setting], keep: Keep | None = None) -> dict[str, Row]:
    """A row for each setting, then the ensemble and the parents.

    Args:
        merger: the models and the images for the statistics.
        test: labelled images, as for `evaluate`.
        settings: the ways to merge.
        keep: called with each merged model.
    """
    merges: dict[str, Row] = {}
    others: list[Row] = []
    for setting in settings:
        merged = merger.merge(Options(setting.method), cut=setting.cut, calibrate=setting.calibrate)
        if keep:
            keep(setting.slug, merged)
        row, *rest = evaluate(merged, test, parents=[] if others else merger.sources)
        merges[str(setting)], others = replace(row, model=str(setting)), others or rest
    return merges | {row.model: row for row in reversed(others)}

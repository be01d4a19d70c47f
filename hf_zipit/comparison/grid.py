"""The merges of a comparison: every method at every cut, width and budget, with every calibration; papers' tables."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_zipit.calibration.methods import check_calibration
from hf_zipit.comparison.papers import PREFIX, rows_of
from hf_zipit.errors import OptionError
from hf_zipit.matching.options import Options
from hf_zipit.matching.registry import ALL, AUTO, balanced, method_of, usable
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.sizing import check_width
from hf_zipit.recipe import NO_CUT, Recipe

_log = logging.getLogger("hf_zipit")
VARIED = ("method", "width", "flops_budget")
SIZED = "mudsc-zip"  # a method that has every option
BATCHNORM = "batchnorm"


@dataclass(frozen=True)
class Grid:
    """What varies in a comparison.

    Attributes:
        methods: names of methods; `all` stands for all methods and controls, and `paper:NAME` for the rows of a paper's
            table, with the paper's calibrations and options.
        cuts: names of cuts; `None` or `none` merges all layers.
        calibrations: names of calibrations; every merge is calibrated in each way. Default: `batchnorm`, and `auto` for
            the method `auto`, as in a plain merge.
        widths: merged units per unit of one model.
        flops_budgets: multiples of one parent's FLOPs; each budget chooses its own cut and widths.
        options: other options for all merges, such as `alpha`. Methods without a balance ignore `balance: auto`.
    """

    methods: Sequence[str] = ("all",)
    cuts: Sequence[str | None] = (None,)
    calibrations: Sequence[str] | None = None
    widths: Sequence[float] = (1.0,)
    flops_budgets: Sequence[float] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def recipes(self, merger: Merger) -> list[Recipe]:
        """One recipe for each merge, ordered by method, then by size, then by calibration.

        Each method runs at the widths it supports. Methods of one width ignore widths and budgets.

        Args:
            merger: the models, with the options of the run.

        Raises:
            OptionError: an unknown method, cut or calibration, or a width that these models cannot have.

        >>> Grid(["zip", "permute"], cuts=["layer2", None]).recipes(merger)  # doctest: +SKIP
        """
        self.check()
        cuts = [None if cut == NO_CUT else cut for cut in self.cuts]
        for cut in cuts:
            merger.parents.depth(cut)
        for width in self.widths:
            check_width("width", width, len(merger.parents.sources))
        rows = list(self._rows())
        names = dict.fromkeys(row["method"] for row, _ in rows)
        fixed = [name for name in names if not method_of(name).resizes]
        if fixed and (self.flops_budgets or set(self.widths) - {1}):
            _log.warning("these --methods run at width 1 only, without budgets: %s", ", ".join(fixed))
        found = [
            sized.changed(calibrate=name)
            for row, calibrations in rows
            for sized in self._sizes(self._base(merger.recipe, row), cuts, "width" in row)
            for name in calibrations
        ]
        return list({json.dumps(recipe.decisions): recipe for recipe in found}.values())

    def check(self) -> None:
        """Check everything that can be checked without the models.

        Raises:
            OptionError: an unknown method, paper or calibration, a number out of range, nothing to vary, or an option
                that a paper sets to another value.
        """
        calibrations = [BATCHNORM] if self.calibrations is None else self.calibrations
        parts = {"methods": self.methods, "cuts": self.cuts, "calibrations": calibrations, "widths": self.widths}
        for name, values in parts.items():
            if not values:
                raise OptionError(f"no {name} to compare: give at least one")
        for method in self.methods:
            if method.startswith(PREFIX):
                self._check_paper(method)
            elif method != ALL:
                Options(method=method)
        if self.calibrations is not None and all(method.startswith(PREFIX) for method in self.methods):
            raise OptionError(f"{self.methods[0]} has its own calibrations: leave out --calibrate, or name methods too")
        for calibration in calibrations:
            check_calibration(calibration)
        for width in self.widths:
            Options(method=SIZED, width=width)
        for budget in self.flops_budgets:
            Options(method=SIZED, flops_budget=budget)
        refused = [name for name in self.options if name not in Options.model_fields or name in VARIED]
        if refused:
            raise OptionError(f"{refused[0]} is not an option of a grid: give it to the Merger, or let it vary")
        Options(**{**self.options, "method": SIZED})

    def _check_paper(self, paper: str) -> None:
        """Refuse options that a paper sets to other values."""
        for row in rows_of(paper):
            Recipe(**row)
            for name, value in row.items():
                given = self.options.get(name, value)
                if given != value:
                    raise OptionError(f"{name} is {given}, but {value} for {row['method']} in {paper}: leave it out")

    def _rows(self) -> Iterator[tuple[dict[str, Any], Sequence[str]]]:
        """The method and own options of each row, and its calibrations."""
        for name in dict.fromkeys(self.methods):
            if name.startswith(PREFIX):
                for row in rows_of(name):
                    yield {key: value for key, value in row.items() if key != "calibrate"}, [row["calibrate"]]
            else:
                for method in usable() if name == ALL else [name]:
                    yield {"method": method}, self.calibrations or [AUTO if method == AUTO else BATCHNORM]

    def _base(self, run: Recipe, row: Mapping[str, Any]) -> Recipe:
        """The recipe of a row, with the options of the run and of the grid."""
        options = {**self.options, **row}
        if not balanced(row["method"]) and options.get("balance", run.balance) == AUTO:
            options |= {"balance": Options.model_fields["balance"].default}
            run = run.changed(method=SIZED, balance_data=None)
        return run.changed(**{"width": 1.0, "flops_budget": None, "cut": None, **options})

    def _sizes(self, base: Recipe, cuts: Sequence[str | None], own: bool) -> list[Recipe]:
        """A recipe for every cut and width, and for every budget; with a width of its own, for every cut."""
        widths = [base.width] if own else [width for width in dict.fromkeys(self.widths) if base.how.takes(width)]
        found = [base.changed(cut=cut, width=width) for cut in dict.fromkeys(cuts) for width in widths]
        if own or not base.how.resizes:
            return found
        return found + [base.changed(flops_budget=budget) for budget in dict.fromkeys(self.flops_budgets)]

"""The merges of a comparison: every method at every cut, width and budget, with every calibration."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_zipit.calibration.methods import check_calibration
from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import AUTO, METHODS, balanced, method_of
from hf_zipit.matching.options import Options
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.sizing import check_width
from hf_zipit.recipe import NO_CUT, Recipe

_log = logging.getLogger("hf_zipit")
VARIED = ("method", "width", "flops_budget")
ALL = "all"
SIZED = "mudsc-zip"  # a method that has every option


@dataclass(frozen=True)
class Grid:
    """What varies in a comparison.

    Attributes:
        methods: names of methods; `all` stands for all methods and controls.
        cuts: names of cuts; `None` or `none` merges all layers.
        calibrations: names of calibrations; every merge is calibrated in each way.
        widths: merged units per unit of one model.
        flops_budgets: multiples of one parent's FLOPs; each budget chooses its own cut and widths.
        options: other options for all merges, such as `alpha`. Methods without a balance ignore `balance: auto`.
    """

    methods: Sequence[str] = ("all",)
    cuts: Sequence[str | None] = (None,)
    calibrations: Sequence[str] = ("batchnorm",)
    widths: Sequence[float] = (1.0,)
    flops_budgets: Sequence[float] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def recipes(self, merger: Merger) -> list[Recipe]:
        """One recipe for each merge, ordered by method, then by size, then by calibration.

        Each method runs at the widths it supports. Methods that keep the width of one model ignore widths and budgets.

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
        chosen = list(METHODS) if ALL in self.methods else list(dict.fromkeys(self.methods))
        bases = [self._base(merger.recipe, name) for name in chosen]
        fixed = [name for name in chosen if not method_of(name).resizes]
        if fixed and (self.flops_budgets or set(self.widths) - {1}):
            _log.warning("these --methods run at width 1 only, without budgets: %s", ", ".join(fixed))
        return [
            sized.changed(calibrate=name)
            for base in bases
            for sized in self._sizes(base, cuts)
            for name in self.calibrations
        ]

    def check(self) -> None:
        """Check everything that can be checked without the models.

        Raises:
            OptionError: an unknown method or calibration, a number out of range, or nothing to vary.
        """
        parts = {"methods": self.methods, "cuts": self.cuts, "calibrations": self.calibrations, "widths": self.widths}
        for name, values in parts.items():
            if not values:
                raise OptionError(f"no {name} to compare: give at least one")
        for method in self.methods:
            if method != ALL:
                Options(method=method)
        for calibration in self.calibrations:
            check_calibration(calibration)
        for width in self.widths:
            Options(method=SIZED, width=width)
        for budget in self.flops_budgets:
            Options(method=SIZED, flops_budget=budget)
        refused = [name for name in self.options if name not in Options.model_fields or name in VARIED]
        if refused:
            raise OptionError(f"{refused[0]} is not an option of a grid: give it to the Merger, or let it vary")
        Options(**{**self.options, "method": SIZED})

    def _base(self, run: Recipe, method: str) -> Recipe:
        """The recipe of a method, with the options of the run and of the grid."""
        options = dict(self.options)
        if method in (AUTO, *METHODS) and not balanced(method) and options.get("balance", run.balance) == AUTO:
            options |= {"balance": Options.model_fields["balance"].default}
            run = run.changed(method=SIZED, balance_data=None)
        return run.changed(**{"width": 1.0, "flops_budget": None, "cut": None, **options, "method": method})

    def _sizes(self, base: Recipe, cuts: Sequence[str | None]) -> list[Recipe]:
        """A recipe for every cut and width, and for every budget."""
        widths = [width for width in dict.fromkeys(self.widths) if base.how.takes(width)]
        found = [base.changed(cut=cut, width=width) for cut in dict.fromkeys(cuts) for width in widths]
        if not base.how.resizes:
            return found
        return found + [base.changed(flops_budget=budget) for budget in dict.fromkeys(self.flops_budgets)]

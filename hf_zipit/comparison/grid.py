"""The merges of a comparison: every method at every cut, width and budget, with every calibration."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hf_zipit.matching.methods import METHODS, Options
from hf_zipit.matching.widen import check_ratio
from hf_zipit.merging.balance import AUTO, takes_balance
from hf_zipit.merging.merger import Merger, check_calibration
from hf_zipit.specs.cuts import resolve_cut

_log = logging.getLogger("hf_zipit")


@dataclass(frozen=True)
class Trial:
    """One merge of a comparison."""

    options: Options
    cut: str | None
    calibrate: str
    automatic: bool = False  # the balance is chosen

    @property
    def recipe(self) -> dict[str, Any]:
        """What sets it apart from the others."""
        options = {**asdict(self.options), **({"balance": AUTO} if self.automatic else {})}
        return {**options, "cut": self.cut, "calibrate": self.calibrate}


def trials(
    merger: Merger,
    methods: Sequence[str],
    cuts: Sequence[str | None],
    calibrations: Sequence[str],
    options: Options,
    *,
    automatic: bool = False,
    widths: Sequence[float] = (1.0,),
    flops_budgets: Sequence[float] = (),
) -> list[Trial]:
    """Every method at every cut and width, and for every budget of FLOPs, with every calibration.

    `all` stands for every method. A method has those of the widths that it takes, and one that compares nothing no
    budget. With `automatic` the methods that have a balance choose it.

    Raises:
        OptionError: an unknown method, cut or calibration, or a width that these models cannot have.
    """
    for cut in cuts:
        resolve_cut(merger.binding, cut)
    for name in calibrations:
        check_calibration(name)
    for width in widths:
        check_ratio("width", width, merger.sources)
    chosen = list(METHODS) if "all" in methods else list(dict.fromkeys(methods))
    kinds = [replace(options, method=method) for method in chosen]
    fixed = [name for name in chosen if METHODS[name].fixed and (flops_budgets or set(widths) - {1})]
    if fixed:
        _log.warning("%s: at width 1 alone and for no budget, as nothing is compared", ", ".join(fixed))
    found = []
    for kind in kinds:
        method = METHODS[kind.method]
        mine = [width for width in dict.fromkeys(widths) if method.takes(width)]
        sizes = [(replace(kind, width=width), cut) for cut in dict.fromkeys(cuts) for width in mine]
        if method.fixed is None:
            sizes += [(replace(kind, flops_budget=budget), None) for budget in dict.fromkeys(flops_budgets)]
        balanced = automatic and takes_balance(kind.method)
        found += [Trial(sized, cut, name, balanced) for sized, cut in sizes for name in calibrations]
    return found

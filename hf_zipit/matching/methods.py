"""Methods by name: which similarity they read and how they match. A new method is one entry of `METHODS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from hf_zipit.errors import OptionError
from hf_zipit.matching.controls import parent_match, random_match
from hf_zipit.matching.greedy import Budget
from hf_zipit.matching.kmeans import kmeans_match
from hf_zipit.matching.optimal import optimal_match
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.select import select_match
from hf_zipit.matching.widen import check_ratio
from hf_zipit.matching.zip import zip_match
from hf_zipit.transform.match import Match, UnitMatch, average_match


@dataclass(frozen=True)
class Options:
    """What the user chose about matching.

    Args:
        method: a name of `METHODS`.
        alpha: penalty on merging many units into one, in [0, 1] (`*zip`).
        beta: share of the merges that may happen within a model, in [0, 1] (`*zip`).
        compat: follow the authors' code where it differs from the repaired method.
        balance: how much the similarity of weights counts against that of activations, in [0, 1] (`mudsc-*`).
        sweeps: over all spaces, at most, for methods that read weights.
        width: merged units of a space for each unit that one model has in it.
        flops_budget: choose cut and widths instead, for at most so many FLOPs, in forwards of one parent.

    Raises:
        OptionError: unknown method, or a number out of range.
    """

    method: str = "zip"
    alpha: float = 0.1
    beta: float = 0.8
    compat: bool = False
    balance: float = 0.5
    sweeps: int = 100
    width: float = 1.0
    flops_budget: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"unknown method '{self.method}'; methods: {', '.join(METHODS)}")
        for name in ("alpha", "beta", "balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name):g}: it must lie between 0 and 1")
        if self.sweeps < 1:
            raise OptionError(f"sweeps is {self.sweeps}: at least one is needed")
        check_ratio("width", self.width)
        if self.flops_budget is not None:
            check_ratio("flops_budget", self.flops_budget)
            if self.width != 1:
                raise OptionError(f"width {self.width:g} and flops_budget {self.flops_budget:g}: give one of them")
        if not METHODS[self.method].takes(self.width):
            least = "width 1 only: it compares nothing" if METHODS[self.method].fixed else "no width below 1"
            raise OptionError(f"width is {self.width:g}: method '{self.method}' has {least}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Options":
        """Those of a merge's keywords that are about matching; where the balance is chosen later it is the default."""
        mine = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if isinstance(mine.get("balance"), str):
            del mine["balance"]
        return cls(**mine)

    @property
    def needs_statistics(self) -> bool:
        """Whether the method reads activations."""
        return METHODS[self.method].activations

    @property
    def ignored(self) -> list[str]:
        """Options that were set although the method does not read them."""
        method = METHODS[self.method]
        read = {"method", "compat", "width", "flops_budget", *(("alpha", "beta") if method.match is _zip else ())}
        read |= {"balance"} if method.activations and method.weights else set()
        read |= {"sweeps"} if method.weights else set()
        return [f.name for f in fields(self) if f.name not in read and getattr(self, f.name) != f.default]


@dataclass(frozen=True)
class Method:
    """What is compared and how it is matched. Where weights count, spaces are matched in sweeps, until none changes.

    `match` makes the function that matches the units of one space or group; `within` says whether it may merge units
    of one model, `sized` whether it takes a width (`keep`), `read` whether it takes how units are read (`readers`). A
    method that compares nothing has `fixed` instead, from a space's size, its groups and the number of models. A
    `control` is no method, but what methods have to beat.
    """

    match: Callable[[Options, Budget | None], UnitMatch] = field(default=lambda *_: permute_match)
    activations: bool = False
    weights: bool = False
    within: bool = False
    sized: bool = False
    read: bool = False
    fixed: Callable[[int, int, int], Match] | None = None
    control: bool = False

    def takes(self, width: float) -> bool:
        """Whether there are matches of this width: narrower ones need merges within the models."""
        return width == 1 or (self.fixed is None and (width > 1 or self.sized))


def _zip(options: Options, budget: Budget | None) -> UnitMatch:
    return partial(zip_match, alpha=options.alpha, beta=options.beta, compat=options.compat, budget=budget)


def _permute(options: Options, _: Budget | None) -> UnitMatch:
    return partial(permute_match, compat=options.compat)


METHODS: dict[str, Method] = {
    "zip": Method(
        _zip, activations=True, within=True, sized=True
    ),  # ZipIt! (2024), section 4: greedy, across and within models
    "select": Method(
        lambda *_: select_match, activations=True, within=True, sized=True, read=True
    ),  # units from which the others are predicted best
    "permute": Method(_permute, activations=True),  # activation alignment, Li et al. (2015): one-to-one across models
    "average": Method(fixed=lambda size, _, models: average_match([size] * models)),  # unit i with unit i
    "optimal": Method(lambda *_: optimal_match, activations=True, within=True),  # the best pairs (ZipIt!, section 5)
    "kmeans": Method(lambda *_: kmeans_match, activations=True, within=True),  # ZipIt!, section 5
    "git-rebasin": Method(_permute, weights=True),  # weight matching, Ainsworth et al. (2023)
    "weight-zip": Method(_zip, weights=True, within=True, sized=True),  # zip on weights (MuDSC, section 4)
    "mudsc-align": Method(_permute, activations=True, weights=True),  # MuDSC (2024): activations and weights
    "mudsc-zip": Method(_zip, activations=True, weights=True, within=True, sized=True),
    "first-parent": Method(fixed=partial(parent_match, parent=0), control=True),  # its trunk, with a head per task
    "last-parent": Method(fixed=partial(parent_match, parent=-1), control=True),
    "random": Method(fixed=random_match, control=True),  # one-to-one, drawn at random
}

"""What the registry says of a matching method, and how its function is called."""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_zipit.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from hf_zipit.matching.greedy import Budget
    from hf_zipit.specs.spaces import Binding, FeatureSpace
    from hf_zipit.transform.match import Match


@dataclass(frozen=True)
class Method:
    """One way to match units.

    Methods that compare weights match the spaces in repeated sweeps, until no match changes.

    Attributes:
        function: The matching function, or a reference to it, `module:name`. Its signature is `(similarity (n, n),
            sizes, ...) -> Match`, or `(sizes, groups, ...) -> Match` if `fixed`, or `(states, binding, families, ...)
            -> {space: Match}` if `at_once`; `-> DenseMatch` if `dense`.
        summary: What the method does, in one line for help texts.
        activations: Whether the similarity is computed from activations.
        weights: Whether the similarity is computed from weights; with both, `balance` weighs them.
        within: Whether the function may merge units of one model.
        options: Names of the options that the function takes as keywords.
        sized: Whether the function takes the number of merged units, `keep`.
        heads: Whether, by default, the attention heads of all models are kept, instead of paired one-to-one.
        read: Whether the function takes how the next layers read the units, `readers`.
        covariance: Whether the function takes the covariance of activations in place of their correlation.
        dense: Whether its matches are dense. They keep one width; where a space allows none, it is matched one-to-one.
        fixed: Whether the match needs no similarity.
        at_once: Whether all spaces are matched at once, by weights.
        paired: Whether merges wider than the models are made of two models only.
        settings: Further keywords of the function.
        control: Whether this is a baseline for the methods, not a method.
        rule: For methods that match unit i with unit i: how the differences of the models to a base are merged, as a
            reference to a function, `module:name`. Its signature is `(deltas, ...) -> merged difference`.
        unequal: Whether the models may have different numbers of units.
        seconds: For methods whose time grows with the cube of the units: about what a space of 1024 units takes.
        observes: Whether the rule takes the inputs of the layers, `inputs`, and no base is needed.
    """

    function: str | Callable[..., Any]
    summary: str
    activations: bool = False
    weights: bool = False
    within: bool = False
    options: tuple[str, ...] = ()
    sized: bool = False
    read: bool = False
    heads: bool = False
    covariance: bool = False
    dense: bool = False
    fixed: bool = False
    at_once: bool = False
    paired: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    control: bool = False
    rule: str | None = None
    observes: bool = False
    unequal: bool = False
    seconds: float = 0.0

    def takes(self, width: float) -> bool:
        """Whether the method can produce matches of this width; widths below 1 need merges within a model."""
        return width == 1 or (self.resizes and (width > 1 or (self.sized and self.within)))

    @property
    def resizes(self) -> bool:
        """Whether merges may be wider or narrower than the models."""
        return not (self.fixed or self.dense or self.at_once)

    def match(self, options: Any, budget: "Budget | None" = None) -> Callable[..., Any]:
        """The matching function for one space or group, with its options filled in.

        Args:
            options: The user's `Options`.
            budget: With `compat`, the budget of merges that all groups of a space share.
        """
        unknown = [name for name in self.options if not hasattr(options, name)]
        if unknown:
            raise OptionError(f"method '{options.method}' takes '{unknown[0]}', which is no option of a merge")
        keywords = {name: getattr(options, name) for name in self.options}
        if budget is not None and "beta" in self.options:
            keywords["budget"] = budget
        return partial(self._resolved, **keywords, **self.settings)

    def fixed_match(self, sizes: Sequence[int], groups: int) -> "Match":
        """The match of a space by a method that needs no similarity.

        Args:
            sizes: Units of each model in the space.
            groups: Number of groups of units.
        """
        found: Match = self._resolved(sizes, groups, **self.settings)
        return found

    def matches_of_all(
        self,
        states: "Sequence[Mapping[str, Tensor]]",
        binding: "Binding",
        families: "Sequence[Sequence[FeatureSpace]]",
        options: Any,
    ) -> "dict[str, Match]":
        """The matches of all spaces by a method that finds them at once, by space.

        Args:
            states: State dicts of the models.
            binding: Maps each space to slices of parameters.
            families: The spaces; those of a family move their groups together.
            options: The user's `Options`.
        """
        keywords = {name: getattr(options, name) for name in self.options}
        found: dict[str, Match] = self._resolved(states, binding, families, **keywords)
        return found

    @property
    def based(self) -> bool:
        """Whether the method needs the model that the others were fine-tuned from."""
        return self.rule is not None and not self.observes

    def merged(self, deltas: "Sequence[Mapping[str, Tensor]]", options: Any, **keywords: Any) -> "dict[str, Tensor]":
        """The merged difference to a base, by the rule of the method with its options filled in.

        Args:
            deltas: The differences of each model, by name.
            options: The user's recipe.
            keywords: What else the rule takes.
        """
        assert self.rule is not None
        chosen = {name: getattr(options, name) for name in self.options if name != "scale"}
        found: dict[str, Tensor] = pkgutil.resolve_name(self.rule)(deltas, **chosen, **keywords)
        return found

    @property
    def _resolved(self) -> Callable[..., Any]:
        return pkgutil.resolve_name(self.function) if isinstance(self.function, str) else self.function

"""Merges by the differences of models to the one that they were fine-tuned from."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from hf_zipit.assembly.parents import Merged, Parents
from hf_zipit.data.batches import Passes
from hf_zipit.deltas.regmean import Inputs
from hf_zipit.deltas.rules import State, mean
from hf_zipit.errors import OptionError
from hf_zipit.merging.base import Base, base_state, merged_names, named_base
from hf_zipit.merging.scale import chosen_scale, unseen_scale
from hf_zipit.recipe import PinnedSource, Recipe
from hf_zipit.running import working_copy
from hf_zipit.sources.access import Access
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan

_log = logging.getLogger("hf_zipit")
DOUBTFUL = 2.0  # models that were fine-tuned apart differ from their base by less than from each other


class Differences:
    """The differences of some models to their base, which is loaded when a method first needs it.

    Args:
        parents: the models, as they were given.
        base: the base, if the user gave one.
        passes: over the images, for methods that read inputs.
        judging: over the images that decide on a scale; held-out ones, if there are any.
        access: token and permissions for reading the base.
    """

    def __init__(
        self, parents: Parents, base: Base | PinnedSource | None, passes: Passes, judging: Passes, access: Access
    ) -> None:
        self.parents = parents
        self.passes = passes
        self.judging = judging
        self.given = base
        self._access = access
        self._merged: dict[Any, Difference] = {}
        self._scales: dict[Any, float] = {}

    @cached_property
    def base(self) -> Source:
        """The model that the others were fine-tuned from.

        Raises:
            OptionError: none is given, and the cards name none.
            SourceError: it cannot be loaded.
        """
        return load_source(named_base(self.given, self.parents.wholes), access=self._access)

    def applied(self, plan: Plan, recipe: Recipe) -> Parents:
        """The models with one trunk in common, by the rule of the method.

        Args:
            plan: of the merge.
            recipe: the options, with the seed of the run; its scale is a number, if the method needs a base.
        """
        base = self.base if recipe.how.based else None
        key = (recipe.changed(scale=1.0).options, plan.depth)
        if key not in self._merged:
            self._merged[key] = merged_difference(self.parents, plan, recipe, base, self.passes)
        found = self._merged[key]
        values = found.at(float(recipe.scale) if base else 1.0, self.parents.states[0])
        return self.parents.with_trunks([values] * len(self.parents.states))

    def scale(self, recipe: Recipe, merge: Callable[[Recipe], Merged], near: Callable[[Merged], float]) -> float:
        """The scale of the difference where it is `auto`.

        Args:
            recipe: the options.
            merge: makes a merge.
            near: how near a merge is to the models.
        """
        if not self.judging.images:
            return unseen_scale(recipe, len(self.parents.sources))
        key = (recipe.options, recipe.cut)
        if key not in self._scales:
            self._scales[key] = chosen_scale(recipe, self.parents, self.judging, merge, near)
        return self._scales[key]


@dataclass(frozen=True)
class Difference:
    """What a rule makes of the differences of the models to their base.

    Attributes:
        base: the tensors of the base, or the mean of the models, in float64.
        merged: the merged difference to them.
    """

    base: State
    merged: State

    def at(self, scale: float, like: State) -> dict[str, Tensor]:
        """The base plus the merged difference times a scale, in the precision of `like`."""
        return {name: (value + scale * self.merged[name]).to(like[name].dtype) for name, value in self.base.items()}


@torch.no_grad()
def merged_difference(parents: Parents, plan: Plan, recipe: Recipe, base: Source | None, passes: Passes) -> Difference:
    """Merge the differences of the models to a base by the rule of the method.

    Statistics of batch norms, and tensors that not all models have, are left out: they are averaged.

    Args:
        parents: the models, as they were given.
        plan: of the merge.
        recipe: the options, whose method has a rule.
        base: the base; without one, the mean of the models.
        passes: over the images, for methods that read inputs.

    Raises:
        OptionError: the method reads inputs, and there are no images.
        SourceError: the base is not that of the models.
    """
    states = parents.states
    names = merged_names(states, plan)
    if base is None:
        start = mean([{name: state[name].double() for name in names} for state in states])
    else:
        found, resized = base_state(base, states, names)
        start = {name: value.double().cpu() for name, value in found.items()}
        if resized:
            said = "%s averaged: the base has other sizes (another size of images or patches)"
            _log.warning(said, ", ".join(resized))
    deltas = [{name: state[name].double() - value for name, value in start.items()} for state in states]
    if base is not None:
        _warn_of_doubts(base, states[0][next(iter(start))].dtype, deltas)
    keywords: dict[str, Any] = {}
    if recipe.how.observes:
        if not passes.images:
            raise OptionError(f"{recipe.method} reads the inputs of layers: give --data (data)")
        networks = [working_copy(source.model, passes.device) for source in parents.sources]
        keywords["inputs"] = Inputs(networks, passes, start)
    return Difference(start, recipe.how.merged(deltas, recipe, **keywords))


def _warn_of_doubts(base: Source, dtype: torch.dtype, deltas: Sequence[State]) -> None:
    """Warn of a base that is far from all models, or less precise than they are."""
    kind = next(base.model.parameters()).dtype
    if kind.itemsize < dtype.itemsize:
        _log.warning(
            "the base %s is rounded to %s, and so are the differences to it; give it (--base) in a finer type",
            *(base.name, kind),
        )
    far = min(_length(delta) for delta in deltas)
    apart = max(_length({name: one[name] - two[name] for name in one}) for one, two in combinations(deltas, 2))
    if apart and far > DOUBTFUL * apart:
        _log.warning(
            "%s may not be the base (--base): every model differs from it at least %.1f times as much as from others",
            *(base.name, far / apart),
        )


def _length(values: State) -> float:
    """The Euclidean norm of all tensors together."""
    return float(sum((value.square().sum() for value in values.values()), torch.zeros(())).sqrt())

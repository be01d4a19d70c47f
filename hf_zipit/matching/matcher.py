"""Matching all spaces of the models by one method."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.errors import OptionError, SpecError
from hf_zipit.matching.fingerprint import fingerprint_similarity, fingerprints
from hf_zipit.matching.greedy import Budget
from hf_zipit.matching.groups import match_groups
from hf_zipit.matching.method import Method
from hf_zipit.matching.options import Options
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.quality import agreement, optimality_gap
from hf_zipit.matching.registry import method_of
from hf_zipit.matching.shared_work import work_on_all
from hf_zipit.matching.similarity import correlation, reference_correlation
from hf_zipit.matching.sweeps import Family, Matches, fixpoint, reference_sweeps
from hf_zipit.matching.weights import WeightSimilarity, readers
from hf_zipit.matching.widen import widened
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.statistics.moments import ReferenceMoments
from hf_zipit.transform.match import Match, UnitMatch, group_order

PATIENT = 5  # seconds; methods that take longer say so before they begin
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Matcher:
    """Matches the spaces of several models by one method.

    Attributes:
        statistics: Activation statistics by space name; empty if the method reads none.
        states: State dicts of the models. Their weights are compared if the method does, and break ties otherwise.
        binding: Maps each space to slices of parameters.
        options: Method and parameters.
        widths: Merged units by space name, where they differ from the width of one model.
        accelerator: Progress is shown on its main process only.

    >>> Matcher(statistics, states, binding, Options(method="zip")).matches(binding.spaces.values())  # doctest: +SKIP
    """

    statistics: Mapping[str, SpaceStatistics]
    states: Sequence[Mapping[str, Tensor]]
    binding: Binding
    options: Options
    widths: Mapping[str, int] = field(default_factory=dict)
    accelerator: Accelerator | None = None
    _activation_similarities: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)  # for sweeps

    def matches(
        self, spaces: Iterable[FeatureSpace], known: dict[Any, dict[str, Match]] | None = None
    ) -> dict[str, Match]:
        """Match every space; spaces whose groups move together are matched together.

        Args:
            spaces: Spaces to match. Weights are not compared along spaces that are not among them.
            known: Earlier matches by activations, for the same models and statistics. New ones are added in place.

        Returns:
            A match by space name.

        Raises:
            OptionError: The method cannot match these spaces (`optimal` without its extra or with too many units).
            SpecError: A space is observed nowhere in the layers that are merged.
        """
        spaces = list(spaces)
        method = self.method
        if method.fixed:
            fixed = {space.name: method.fixed_match(space.sizes(self.models), space.groups) for space in spaces}
            self._check_order(spaces, fixed)
            return fixed
        families = self.families(spaces)
        if method.at_once:
            return method.matches_of_all(self.states, self.binding, families, self.options)
        matches: dict[str, Match] = {}
        if method.activations:
            known = {} if known is None else known
            keys = {family: (method, self.options, family, self._widths_of(family)) for family in families}
            new = [family for family in families if keys[family] not in known]
            self._announce(new)
            found = work_on_all(self.match, new, "Matching", self.accelerator)
            known |= {keys[family]: match for family, match in zip(new, found, strict=True)}
            for family in families:
                matches |= known[keys[family]]
        if not method.weights:
            return matches
        if self.options.compat:
            return reference_sweeps(families, self.rematch, matches, self.options.sweeps)
        near = {space.name: self.weights.neighbours(space.name) for space in spaces}
        return fixpoint(families, self.rematch, near, matches, self.options.sweeps)

    def _check_order(self, spaces: Sequence[FeatureSpace], found: Mapping[str, Match]) -> None:
        """Refuse fixed matches that order the groups of two spaces differently: heads of keys and of values."""
        for family in self.families(spaces):
            orders = [group_order(found[space.name], space.groups) for space in family]
            other = next((space for space, order in zip(family, orders, strict=True) if order != orders[0]), None)
            if other:
                raise OptionError(
                    f"method '{self.options.method}' orders the {other.groups} groups of '{family[0].name}' and of "
                    f"'{other.name}' differently, but these move together: let the order depend on `groups` alone"
                )

    @property
    def method(self) -> Method:
        """The method of the options."""
        return method_of(self.options.method)

    @property
    def models(self) -> int:
        """Number of models, N."""
        return len(self.states)

    @cached_property
    def weights(self) -> WeightSimilarity:
        """The similarity of weights, given the current matches."""
        return WeightSimilarity(self.states, self.binding, self.options.compat)

    def families(self, spaces: Sequence[FeatureSpace]) -> list[Family]:
        """Spaces grouped by what must be matched together, because their groups share one order.

        MuDSC's code orders the groups of every space separately. Under `compat` this is followed, except for grouped
        convolutions and spaces without probes, which do not allow it, and for methods that match all spaces at once.
        """
        tied = {self.binding.spaces[row.space].group_axis for row in self.binding.table if row.local}
        tied |= {space.group_axis for space in spaces if not space.probes}
        apart = self.options.compat and not self.method.at_once
        out: dict[tuple[str | None, str], list[FeatureSpace]] = {}
        for space in spaces:
            alone = space.group_axis is None or (apart and space.group_axis not in tied)
            out.setdefault((space.group_axis, space.name if alone else ""), []).append(space)
        return [tuple(family) for family in out.values()]

    def match(self, family: Family) -> dict[str, Match]:
        """Match a family by activations alone."""
        similarities = [self._activation_similarity(space) for space in family]
        found = self._matched(family, similarities)
        if self.method.within and not self.method.weights and logger.isEnabledFor(logging.INFO):
            for space, similarity in zip(family, similarities, strict=True):
                if similarity is not None and self._merges_within(space):
                    gap = optimality_gap(similarity, found[space.name])
                    logger.info("%s: %s is at most %.1f %% from optimal", space.name, self.options.method, 100 * gap)
        return found

    def rematch(self, family: Family, matches: Matches) -> tuple[dict[str, Match], float]:
        """Match a family by weights, or by weights and activations, given the current matches.

        Returns:
            The new matches, and their gain in agreement over the current ones, summed over the family. The gain is
            infinite under `compat` and for a family without current matches.
        """
        similarities = [self._similarity(space, matches) for space in family]
        found = self._matched(family, similarities)
        if self.options.compat or any(space.name not in matches for space in family):
            return found, math.inf
        gain = 0.0
        for space, similarity in zip(family, similarities, strict=True):
            new = found[space.name]
            old = matches[space.name]
            if similarity is not None and not torch.equal(new.labels, old.labels):
                gain += agreement(similarity, new) - agreement(similarity, old)
        return found, gain

    def _matched(self, family: Family, similarities: Sequence[Tensor | None]) -> dict[str, Match]:
        """Match a family by the given similarities, one per space."""
        first = family[0]
        methods = [self._unit_match(space) for space in family]
        if first.group_axis is None:
            if similarities[0] is None:
                raise SpecError(
                    f"space '{first.name}' is not observed in the layers that are merged, so its units cannot be "
                    "matched; merge up to an earlier cut, or leave out the backbone"
                )
            return {first.name: methods[0](similarities[0], first.sizes(self.models))}
        found = match_groups(similarities, self.models, first.groups, methods, compat=self.options.compat)
        return {space.name: match for space, match in zip(family, found, strict=True)}

    def _announce(self, families: Sequence[Family]) -> None:
        """Say how long a slow method will take."""
        units = [sum(space.sizes(self.models)) for family in families for space in family]
        seconds = self.method.seconds * sum((count / 1024) ** 3 for count in units)
        if seconds > PATIENT and (self.accelerator is None or self.accelerator.is_main_process):
            said = "%s takes time that grows with the cube of the units: about %.0f s of one core for these %d spaces"
            logger.warning(said, self.options.method, seconds, len(units))

    def _widths_of(self, family: Family) -> tuple[int | None, ...]:
        """Merged units of each space of a family, where they differ from the width of one model."""
        return tuple(self.widths.get(space.name) for space in family)

    def _merges_within(self, space: FeatureSpace) -> bool:
        """Whether units of one model may be merged in this space."""
        return self.method.within and (self.options.compat or not space.one_to_one)

    def _unit_match(self, space: FeatureSpace) -> UnitMatch:
        """The function that matches the units of this space, or of one tuple of its groups."""
        if self.method.within and not self._merges_within(space):
            return permute_match
        budget = None
        if self.options.compat and space.groups > 1:  # all groups of the space share one budget
            budget = Budget.of((space.size,) * self.models, self.options.beta, space.size, space.groups)
        found: Callable[..., Match] = self.method.match(self.options, budget)
        if self.method.read and space.groups == 1 and space.probes:
            covariance = self.statistics[space.name].moments.covariance
            found = partial(found, readers=readers(self.states, self.binding, space, covariance))
        keep = self.widths.get(space.name, space.size if space.each else None)
        if keep is None:
            return found
        keep //= space.groups
        return partial(found, keep=keep) if self.method.sized else widened(found, keep)

    def _similarity(self, space: FeatureSpace, matches: Matches) -> Tensor | None:
        """Similarity of weights, or of weights and activations (MuDSC, eq. 4); `None` for a space without probes."""
        if not space.probes:
            return None
        by_weights = self.weights(space, matches, within=self._merges_within(space))
        if by_weights is None:
            by_weights = self._fingerprint_similarity(space)
        if not self.method.activations:
            return by_weights
        by_activations = self._activation_similarity(space)
        assert by_activations is not None
        return torch.lerp(by_activations, by_weights, float(self.options.balance))

    def _activation_similarity(self, space: FeatureSpace) -> Tensor | None:
        """Correlation of activations; `None` for a space without probes, which follows its groups."""
        if not space.probes:
            return None
        if space.name in self._activation_similarities:
            return self._activation_similarities[space.name]
        moments = self.statistics[space.name].moments
        if isinstance(moments, ReferenceMoments):
            found = reference_correlation(moments)
        else:
            found = correlation(moments, self._fingerprint_similarity(space))
        if self.method.weights:  # every sweep needs it again
            found = found.float().cpu()
            self._activation_similarities[space.name] = found
        return found

    def _fingerprint_similarity(self, space: FeatureSpace) -> Tensor:
        return fingerprint_similarity(fingerprints(self.states, self.binding, space))

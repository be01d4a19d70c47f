"""Matching all spaces of a model by one method."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_zipit.matching.fingerprint import fingerprints, likeness
from hf_zipit.matching.greedy import Budget
from hf_zipit.matching.groups import match_groups
from hf_zipit.matching.methods import METHODS, Options
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.quality import agreement, optimality_gap
from hf_zipit.matching.similarity import correlation, reference_correlation
from hf_zipit.matching.sweeps import Family, Matches, fixpoint, reference_sweeps
from hf_zipit.matching.weights import WeightSimilarity, readers
from hf_zipit.matching.widen import widened
from hf_zipit.progress import progress
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.match import Match, UnitMatch

logger = logging.getLogger(__name__)


def match_spaces(
    spaces: Iterable[FeatureSpace],
    statistics: Mapping[str, SpaceStatistics],
    states: Sequence[Mapping[str, Tensor]],
    binding: Binding,
    options: Options,
    accelerator: Accelerator | None = None,
    widths: Mapping[str, int] | None = None,
    known: dict[Any, dict[str, Match]] | None = None,
) -> dict[str, Match]:
    """Match every space; spaces whose groups move together are matched together.

    Args:
        spaces: the spaces to match; the weights that touch others are not compared along these.
        statistics: by space name; empty for a method that reads none.
        states: the models' state dicts: the weights to compare, and what tells units apart that the data does not.
        binding: where the spaces are in them.
        options: the method and its parameters.
        accelerator: progress is shown on its main process only.
        widths: merged units by space, where they are not as many as one model has.
        known: matches by activations that were made before, for the same models and statistics; new ones are added.

    Raises:
        OptionError: the method cannot match these spaces (`optimal` without its extra, or with too many units).
    """
    method, spaces = METHODS[options.method], list(spaces)
    if method.fixed is not None:
        return {space.name: method.fixed(space.size, space.groups, len(states)) for space in spaces}
    matcher = _Matcher(statistics, states, binding, options, widths or {})
    families = matcher.families(spaces)
    matches: dict[str, Match] = {}
    known = {} if known is None else known
    if method.activations:
        for family in progress(families, "Matching", accelerator):
            key = (options, family, tuple(matcher.widths.get(space.name) for space in family))
            if key not in known:
                known[key] = matcher.match(family)
            matches |= known[key]
    if not method.weights:
        return matches
    if options.compat:
        return reference_sweeps(families, matcher.rematch, matches, options.sweeps)
    near = {space.name: matcher.weights.neighbours(space.name) for space in spaces}
    return fixpoint(families, matcher.rematch, near, matches, options.sweeps)


class _Matcher:
    """Everything that matches are made from."""

    def __init__(
        self,
        statistics: Mapping[str, SpaceStatistics],
        states: Sequence[Mapping[str, Tensor]],
        binding: Binding,
        options: Options,
        widths: Mapping[str, int],
    ) -> None:
        self.widths = widths
        self.statistics, self.states, self.binding, self.options = statistics, states, binding, options
        self.method, self.models = METHODS[options.method], len(states)
        self.weights = WeightSimilarity(states, binding, options.compat)
        self._seen: dict[str, Tensor] = {}  # similarities of activations that are needed again

    def families(self, spaces: Sequence[FeatureSpace]) -> list[Family]:
        """Spaces that are matched together, as their groups have one order.

        The authors' code orders the groups of every space by itself; grouped convolutions and spaces that only
        follow do not allow that.
        """
        tied = {self.binding.spaces[row.space].group_axis for row in self.binding.table if row.local}
        tied |= {space.group_axis for space in spaces if not space.probes}
        out: dict[tuple[str | None, str], list[FeatureSpace]] = {}
        for space in spaces:
            alone = space.group_axis is None or (self.options.compat and space.group_axis not in tied)
            out.setdefault((space.group_axis, space.name if alone else ""), []).append(space)
        return [tuple(family) for family in out.values()]

    def match(self, family: Family) -> dict[str, Match]:
        """Match a family by activations alone."""
        similarities = [self._of_activations(space) for space in family]
        found = self._matched(family, similarities)
        if self.method.within and not self.method.weights and logger.isEnabledFor(logging.INFO):
            for space, similarity in zip(family, similarities, strict=True):
                if similarity is not None and self._within(space):
                    gap = optimality_gap(similarity, found[space.name])
                    logger.info("%s: %s is at most %.1f %% from optimal", space.name, self.options.method, 100 * gap)
        return found

    def rematch(self, family: Family, matches: Matches) -> tuple[dict[str, Match], float]:
        """Match a family by weights, in the units of the current matches; also what each unit gains on average."""
        similarities = [self._similarity(space, matches) for space in family]
        found = self._matched(family, similarities)
        if self.options.compat or any(space.name not in matches for space in family):
            return found, math.inf
        gain = 0.0
        for space, similarity in zip(family, similarities, strict=True):
            new, old = found[space.name], matches[space.name]
            if similarity is not None and not torch.equal(new.labels, old.labels):
                gain += agreement(similarity, new) - agreement(similarity, old)
        return found, gain

    def _matched(self, family: Family, similarities: Sequence[Tensor | None]) -> dict[str, Match]:
        first, methods = family[0], [self._method(space) for space in family]
        if first.group_axis is None:
            assert similarities[0] is not None
            return {first.name: methods[0](similarities[0], [first.size] * self.models)}
        found = match_groups(similarities, self.models, first.groups, methods, compat=self.options.compat)
        return {space.name: match for space, match in zip(family, found, strict=True)}

    def _within(self, space: FeatureSpace) -> bool:
        """Whether units of one model may be merged in this space."""
        return self.method.within and (self.options.compat or not space.one_to_one)

    def _method(self, space: FeatureSpace) -> UnitMatch:
        if self.method.within and not self._within(space):
            return permute_match
        budget = None
        if self.options.compat and space.groups > 1:  # one for all groups of the space
            budget = Budget.of((space.size,) * self.models, self.options.beta, space.size, space.groups)
        found: Callable[..., Match] = self.method.match(self.options, budget)
        if self.method.read and space.groups == 1 and space.probes:
            covariance = self.statistics[space.name].pooled.covariance
            found = partial(found, readers=readers(self.states, self.binding, space, covariance))
        keep = self.widths.get(space.name)
        if keep is None:
            return found
        keep //= space.groups
        return partial(found, keep=keep) if self.method.sized else widened(found, keep)

    def _similarity(self, space: FeatureSpace, matches: Matches) -> Tensor | None:
        """Of weights, or of weights and activations (MuDSC, eq. 4); `None` where a space only follows its groups."""
        if not space.probes:
            return None
        found = self.weights(space, matches, within=self._within(space))
        if found is None:
            found = likeness(fingerprints(self.states, self.binding, space))
        if not self.method.activations:
            return found
        seen = self._of_activations(space)
        assert seen is not None
        return torch.lerp(seen, found, self.options.balance)

    def _of_activations(self, space: FeatureSpace) -> Tensor | None:
        if not space.probes:
            return None
        if space.name in self._seen:
            return self._seen[space.name]
        measure = reference_correlation if self.options.compat else correlation
        found = measure(self.statistics[space.name].pooled, likeness(fingerprints(self.states, self.binding, space)))
        if self.method.weights:
            found = self._seen[space.name] = found.float().cpu()
        return found

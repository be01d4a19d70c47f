"""Matching of spaces by a method whose matches are dense."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from hf_zipit.matching.fingerprint import fingerprint_similarity, fingerprints
from hf_zipit.matching.options import Options
from hf_zipit.matching.shared_work import work_on_all
from hf_zipit.matching.similarity import correlation, tied_covariance
from hf_zipit.matching.weights import readers
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.statistics.moments import Moments
from hf_zipit.transform.dense import DenseMatch

ALIGNED = "permute"  # how spaces are matched that allow no dense match


@dataclass(frozen=True, eq=False)
class DenseMatcher:
    """Matches the spaces of several models by a dense method; each space by itself.

    Attributes:
        statistics: Activation statistics by space name.
        states: State dicts of the models.
        binding: Maps each space to slices of parameters.
        options: Method and parameters.
        accelerator: Divides the spaces among its processes.

    >>> DenseMatcher(statistics, states, binding, Options(method="ot")).match(space)  # doctest: +SKIP
    """

    statistics: Mapping[str, SpaceStatistics]
    states: Sequence[Mapping[str, Tensor]]
    binding: Binding
    options: Options
    accelerator: Accelerator | None = None

    def matches(self, spaces: Iterable[FeatureSpace], known: dict[Any, DenseMatch]) -> dict[str, DenseMatch]:
        """Match every space.

        Args:
            spaces: Spaces without groups that are observed.
            known: Earlier matches, for the same models and statistics. New ones are added in place.

        Returns:
            A match by space name.

        Raises:
            OptionError: The method cannot match models of different widths.
        """
        spaces = list(spaces)
        keys = {space.name: (self.options.how, self.options, space.name) for space in spaces}
        new = [space for space in spaces if keys[space.name] not in known]
        found = work_on_all(self.match, new, "Matching", self.accelerator)
        known |= {keys[space.name]: match for space, match in zip(new, found, strict=True)}
        return {space.name: known[keys[space.name]] for space in spaces}

    def match(self, space: FeatureSpace) -> DenseMatch:
        """Match one space."""
        moments = self.statistics[space.name].moments
        assert isinstance(moments, Moments)  # dense methods have no `compat`
        sizes = space.sizes(len(self.states))
        near = fingerprint_similarity(fingerprints(self.states, self.binding, space))
        method = self.options.how
        values = tied_covariance(moments, near, sizes) if method.covariance else correlation(moments, near)
        read = {}
        if method.read:
            read["readers"] = readers(self.states, self.binding, space, moments.covariance)
        found: DenseMatch = method.match(self.options)(values, sizes, **read)
        return found


def aligning(options: Options) -> Options:
    """The options by which spaces are matched that allow no dense match."""
    kept = {name: value for name, value in dict(options).items() if name not in options.how.options}
    return Options(**{**kept, "method": ALIGNED})

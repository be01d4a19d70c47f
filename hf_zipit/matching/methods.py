"""Methods by name: which similarity they read and how they match. A new method is one entry of `METHODS`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_zipit.errors import OptionError
from hf_zipit.matching.fingerprint import fingerprints, likeness
from hf_zipit.matching.match import Match, UnitMatch, average_match, match_groups, permute_match, zip_match
from hf_zipit.matching.similarity import correlation, reference_correlation
from hf_zipit.spaces import Binding, FeatureSpace
from hf_zipit.statistics import SpaceStatistics


@dataclass(frozen=True)
class Options:
    """What the user chose about matching.

    Raises:
        OptionError: unknown method, or alpha or beta out of range.
    """

    method: str = "zip"
    alpha: float = 0.1
    beta: float = 0.8
    compat: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"unknown method '{self.method}'; methods: {', '.join(METHODS)}")
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"{name} is {getattr(self, name):g}: it must lie between 0 and 1")

    @property
    def needs_statistics(self) -> bool:
        """Whether the method reads activations."""
        return METHODS[self.method] is not None


def _zip(options: Options) -> UnitMatch:
    def match(similarity: Tensor, sizes: Sequence[int]) -> Match:
        return zip_match(similarity, sizes, alpha=options.alpha, beta=options.beta, compat=options.compat)

    return match


def _permute(options: Options) -> UnitMatch:
    return permute_match


METHODS: dict[str, Callable[[Options], UnitMatch] | None] = {
    "zip": _zip,  # ZipIt!, section 4: greedy, across and within models
    "permute": _permute,  # activation alignment, Li et al. (2015): one-to-one across models
    "average": None,  # unit i with unit i; reads no statistics
}


def match_spaces(
    spaces: Iterable[FeatureSpace],
    statistics: Mapping[str, SpaceStatistics],
    states: Sequence[Mapping[str, Tensor]],
    binding: Binding,
    options: Options,
) -> dict[str, Match]:
    """Match every space; spaces whose groups move together are matched together.

    Args:
        spaces: the spaces to match.
        statistics: by space name; empty for a method that reads none.
        states: the models' state dicts, whose weights tell units apart that the data does not.
        binding: where the spaces are in them.
        options: the method and its parameters.
    """
    models = len(states)
    make = METHODS[options.method]
    if make is None:
        return {space.name: average_match([space.size] * models) for space in spaces}
    method, measure = make(options), reference_correlation if options.compat else correlation

    def match_of(space: FeatureSpace) -> UnitMatch:
        return permute_match if space.one_to_one and not options.compat else method

    def similarity(space: FeatureSpace) -> Tensor | None:
        if not space.probes:
            return None
        return measure(statistics[space.name].pooled, likeness(fingerprints(states, binding, space)))

    out: dict[str, Match] = {}
    groups: dict[str, list[FeatureSpace]] = {}
    for space in spaces:
        if space.group_axis is None:
            found = similarity(space)
            assert found is not None
            out[space.name] = match_of(space)(found, [space.size] * models)
        else:
            groups.setdefault(space.group_axis, []).append(space)
    for together in groups.values():
        matrices = [similarity(space) for space in together]
        matched = match_groups(matrices, models, together[0].groups, [match_of(space) for space in together])
        out.update(zip((space.name for space in together), matched, strict=True))
    return out

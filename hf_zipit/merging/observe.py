"""What is known of the activations of models: from the cache on disk, or from a pass over the images."""

from collections.abc import Iterable

from hf_zipit.assembly.parents import Parents
from hf_zipit.data.batches import Passes
from hf_zipit.heads.match import reading
from hf_zipit.heads.statistics import HeadReading, HeadStatistics
from hf_zipit.running import working_copy
from hf_zipit.specs.plan import Plan
from hf_zipit.statistics.cache import StatisticsCache
from hf_zipit.statistics.collect import SpaceStatistics, collect


class Observations:
    """The statistics of some models on some images. What is not known yet takes one pass.

    Args:
        parents: the models.
        passes: over the images.
        cached: whether to use the cache on disk. Then a pass observes all spaces, so that later merges of these models
            need no pass.

    Attributes:
        known: those of spaces, by whether they are computed as the authors' code does.
        heads: those of attention layers, by group axis.
    """

    def __init__(self, parents: Parents, passes: Passes, cached: bool) -> None:
        self.parents = parents
        self.passes = passes
        self.cached = cached
        self.heads: dict[str, HeadStatistics] = {}
        self.known: dict[bool, dict[str, SpaceStatistics]] = {False: {}, True: {}}

    def of_plan(self, names: Iterable[str], plan: Plan, compat: bool) -> dict[str, SpaceStatistics]:
        """The statistics of spaces, as `of_spaces`; those of the heads that a plan keeps are read in the same pass."""
        first = self.parents.sources[0].model
        heads = reading(plan, first, self.parents.input_size, self.passes, self.heads)
        found = self.of_spaces(names, compat, heads)
        self.heads |= heads.found if heads else {}
        return found

    def of_spaces(
        self, names: Iterable[str], compat: bool = False, heads: HeadReading | None = None
    ) -> dict[str, SpaceStatistics]:
        """The statistics of the named spaces.

        Args:
            names: of the spaces; those without probes are left out.
            compat: compute the statistics as the authors' code does.
            heads: what else is read. It takes a pass even if all statistics are known.
        """
        spaces = self.parents.binding.spaces
        probed = {name for name in spaces if spaces[name].probes}
        known = self.known[compat]
        wanted = probed.intersection(names)
        missing = wanted - set(known)
        cache = None
        if missing and self.cached and self.passes.images:
            cache = StatisticsCache(self.parents.sources, self.parents.binding, self.passes, compat)
            known |= cache.read(spaces[name] for name in sorted(missing))
            missing = probed - set(known) if missing - set(known) else set()
        if missing or heads:
            found = self._observe(missing, compat, heads)
            known |= found
            if cache and found:
                cache.write(found)
        return {name: known[name] for name in known if name in wanted}

    def _observe(self, spaces: set[str], compat: bool, heads: HeadReading | None) -> dict[str, SpaceStatistics]:
        """Compute the statistics of the named spaces in one pass over the images."""
        sources, device = self.parents.sources, self.passes.device
        return collect(
            [working_copy(source.model, device, channels_last=not compat) for source in sources],
            self.parents.binding,
            self.passes,
            spaces=spaces,
            names=[source.name for source in sources],
            compat=compat,
            rider=heads,
        )

"""The statistics of models, from the cache on disk or from one pass over the images."""

from collections.abc import Iterable

from hf_zipit.assembly.parents import Parents
from hf_zipit.data.batches import Passes
from hf_zipit.running import working_copy
from hf_zipit.statistics.cache import StatisticsCache
from hf_zipit.statistics.collect import SpaceStatistics, collect


def statistics_of(
    names: Iterable[str],
    parents: Parents,
    passes: Passes,
    known: dict[str, SpaceStatistics],
    cached: bool,
    compat: bool,
) -> dict[str, SpaceStatistics]:
    """The statistics of the named spaces; those not known yet take one pass over the images.

    With a cache, that pass observes all spaces, so that later merges of these models need no pass.

    Args:
        names: of the spaces; those without probes are left out.
        parents: the models.
        passes: over the images.
        known: what is known already; what is new is added.
        cached: whether to use the cache on disk.
        compat: compute the statistics as the authors' code does.
    """
    spaces = parents.binding.spaces
    wanted = {name for name in names if spaces[name].probes}
    missing = wanted - set(known)
    if missing and cached and passes.images:
        stored = StatisticsCache(parents.sources, parents.binding, passes, compat)
        known |= stored.read(spaces[name] for name in sorted(missing))
        if missing - set(known):
            found = _observe({name for name in spaces if spaces[name].probes} - set(known), parents, passes, compat)
            stored.write(found)
            known |= found
    elif missing:
        known |= _observe(missing, parents, passes, compat)
    return {name: known[name] for name in known if name in wanted}


def _observe(spaces: set[str], parents: Parents, passes: Passes, compat: bool) -> dict[str, SpaceStatistics]:
    """Compute the statistics of the named spaces in one pass over the images."""
    return collect(
        [working_copy(source.model, passes.device, channels_last=not compat) for source in parents.sources],
        parents.binding,
        passes,
        spaces=spaces,
        names=[source.name for source in parents.sources],
        compat=compat,
    )

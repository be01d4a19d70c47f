"""Sweeps: spaces whose similarities depend on each other's matches are matched in turn until nothing changes."""

from collections.abc import Callable, Mapping, Sequence

import torch

from hf_zipit.specs.spaces import FeatureSpace
from hf_zipit.transform.match import Match

Family = tuple[FeatureSpace, ...]  # spaces that are matched together
Matches = Mapping[str, Match]
Rematch = Callable[[Family, Matches], tuple[dict[str, Match], float]]

GAIN = 1e-6  # a match has to be better by this much to replace another
PATIENCE = 5  # sweeps without a better mean score after which the authors' code stops


def fixpoint(
    families: Sequence[Family], rematch: Rematch, neighbours: Mapping[str, set[str]], start: Matches, limit: int
) -> dict[str, Match]:
    """Match the families in their order, again and again, each only when a neighbour has changed since.

    Args:
        families: spaces that are matched together, in the order of the forward pass.
        rematch: gives new matches for a family in the light of the current ones, and what is gained by them.
        neighbours: on which spaces' matches a space's similarity depends.
        start: the matches to start from, possibly none.
        limit: sweeps at most.
    """
    matches, stale = dict(start), {space.name for family in families for space in family}
    for _ in range(limit):
        for family in families:
            names = {space.name for space in family}
            if not names & stale:
                continue
            stale -= names
            found, gain = rematch(family, matches)
            if gain > GAIN and any(_differ(matches.get(name), match) for name, match in found.items()):
                matches |= found
                stale |= {name for name, near in neighbours.items() if near & names}
        if not stale:
            break
    return matches


def _differ(a: Match | None, b: Match) -> bool:
    return a is None or not torch.equal(a.labels, b.labels)


def reference_sweeps(families: Sequence[Family], rematch: Rematch, start: Matches, limit: int) -> dict[str, Match]:
    """The sweeps of the authors' code: all spaces in random order (seed 0), the best mean score is kept.

    After a sweep that is no better than the best one so far, the best matches are restored; the fifth in a row ends.
    """
    generator = torch.Generator().manual_seed(0)
    matches, best, value, count = dict(start), dict(start), None, 0
    for _ in range(limit):
        for index in torch.randperm(len(families), generator=generator).tolist():
            matches |= rematch(families[index], matches)[0]
        mean = sum(match.score for match in matches.values()) / max(len(matches), 1)
        if value is not None and mean <= value:
            count += 1
            if count == PATIENCE:
                break
            matches = dict(best)
        else:
            best, value, count = dict(matches), mean, 0
    return best

"""Sweeps over spaces whose similarities depend on each other's matches, repeated until nothing changes."""

from collections.abc import Callable, Mapping, Sequence

import torch

from hf_zipit.specs.spaces import FeatureSpace
from hf_zipit.transform.match import Match

Family = tuple[FeatureSpace, ...]  # spaces that must be matched together
Matches = Mapping[str, Match]
Rematch = Callable[[Family, Matches], tuple[dict[str, Match], float]]

MIN_GAIN = 1e-6  # smallest gain for which a new match replaces the current one
PATIENCE = 5  # sweeps without a better mean score after which the authors' code stops


def fixpoint(
    families: Sequence[Family], rematch: Rematch, neighbours: Mapping[str, set[str]], start: Matches, limit: int
) -> dict[str, Match]:
    """Rematch the families in order and repeatedly, each only when a neighbour has changed since its last match.

    Args:
        families: Spaces that are matched together, in the order of the forward pass.
        rematch: Returns new matches of a family, given the current matches, and the gain over its current ones.
        neighbours: For each space, the spaces on whose matches its similarity depends.
        start: Matches to start from; may be empty.
        limit: Maximum number of sweeps.

    Returns:
        A match for every space.
    """
    matches = dict(start)
    stale = {space.name for family in families for space in family}
    for _ in range(limit):
        for family in families:
            names = {space.name for space in family}
            if not names & stale:
                continue
            stale -= names
            found, gain = rematch(family, matches)
            if gain > MIN_GAIN and any(_differ(matches.get(name), match) for name, match in found.items()):
                matches |= found
                stale |= {name for name, near in neighbours.items() if near & names}
        if not stale:
            break
    return matches


def _differ(a: Match | None, b: Match) -> bool:
    return a is None or not torch.equal(a.labels, b.labels)


def reference_sweeps(families: Sequence[Family], rematch: Rematch, start: Matches, limit: int) -> dict[str, Match]:
    """The sweeps of MuDSC's code: all spaces in random order (seed 0), keeping the matches with the best mean score.

    After a sweep without a better score, the best matches are restored. The fifth such sweep in a row is the last.

    Args:
        families: Spaces that are matched together.
        rematch: Returns new matches of a family, given the current matches; its gain is ignored.
        start: Matches to start from; may be empty.
        limit: Maximum number of sweeps.

    Returns:
        A match for every space.
    """
    generator = torch.Generator().manual_seed(0)
    matches = dict(start)
    best = dict(start)
    best_score = None
    count = 0  # sweeps since the best one
    for _ in range(limit):
        for index in torch.randperm(len(families), generator=generator).tolist():
            matches |= rematch(families[index], matches)[0]
        score = sum(match.score for match in matches.values()) / max(len(matches), 1)
        if best_score is not None and score <= best_score:
            count += 1
            if count == PATIENCE:
                break
            matches = dict(best)
        else:
            best = dict(matches)
            best_score = score
            count = 0
    return best

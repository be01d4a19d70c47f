"""How much of each model survives in merged units, stage by stage."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hf_zipit.merging.budget import explained
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.heads import HeadMatch, Matches


def survival(matches: Matches, statistics: Mapping[str, SpaceStatistics], models: int) -> dict[str, list[float]]:
    """For each space, the share of the variance of each model's units that linear functions of the merged units give.

    Of kept attention heads it is the share of their logits, or of what they write, for all models together.

    Args:
        matches: of the spaces.
        statistics: of the models; spaces without any are left out.
        models: number of models.
    """
    found = {}
    for name, match in matches.items():
        if isinstance(match, HeadMatch):
            found[name] = [match.score] * models
        elif name in statistics:
            parts = torch.split(explained(statistics[name], match), list(statistics[name].sizes))
            found[name] = [_mean(part) for part in parts]
    return found


def by_stage(shares: Mapping[str, Sequence[float]], stages: Mapping[str, set[str]]) -> dict[str, list[float]]:
    """The mean over the spaces of each stage, for each model.

    Args:
        shares: as `survival` returns them.
        stages: stage -> the names of its spaces.
    """
    found = {}
    for stage, names in stages.items():
        rows = [shares[name] for name in names if name in shares]
        if rows:
            found[stage] = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return found


def _mean(values: Tensor) -> float:
    """The mean over units that vary; constant ones have NaN, and of them nothing can be lost."""
    alive = values[values.isfinite()]
    return float(alive.mean()) if len(alive) else 1.0

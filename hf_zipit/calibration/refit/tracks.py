"""The networks of a refit, part by part: the merged trunk and heads, and the same parts of every parent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_zipit.assembly.plan import Plan
from hf_zipit.calibration.refit.replay import Track
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.resume import Steps
from hf_zipit.models.steps import run_steps
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source

Stage = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """A trunk, and the heads behind it: each runs from the image on."""

    trunk: Track
    heads: list[Track]


def network_of(source: Source) -> nn.Module:
    """What computes a parent's outputs: more than `model` where that is a backbone, or the trunk of a merge."""
    whole = source.network if source.trunk is not None or isinstance(source.model, Steps) else None
    return source.model if whole is None else whole


def merged_parts(model: Any, size: Sequence[int]) -> Parts:
    """The parts of a merged model; heads that are no chains, but what surrounds a backbone, run in one stage."""
    stages = stages_of(model.trunk, model.config.trunk or [], size)
    if isinstance(model, ZipItForImageClassification):
        steps, ways = model.config.head or [], zip(model.heads, model.unmerge, strict=True)
        heads = [Track(head, (*stages, *stages_of(head, steps, size, unmerge))) for head, unmerge in ways]
    else:
        named = zip(model.heads, model.config.tasks, strict=True)
        heads = [Track(head, (_passing(partial(model, tasks=task)),)) for head, task in named]
    return Parts(Track(model.trunk, stages), heads)


def parent_parts(source: Source, network: nn.Module, plan: Plan, size: Sequence[int]) -> Parts:
    """The parts of a parent that become those of the merge, in a working copy of its network."""
    if source.trunk is not None:
        return merged_parts(network, size)
    if isinstance(source.model, Steps):
        view = working_copy(source.model, next(network.parameters()).device)
        return Parts(Track(view, stages_of(view, plan.trunk, size)), [Track(network, (_passing(network),))])
    trunk = Track(network, stages_of(network, plan.trunk, size))
    return Parts(trunk, [Track(network, stages_of(network, plan.binding.steps, size))])


def stages_of(
    net: nn.Module, steps: Sequence[str], size: Sequence[int], before: nn.Module | None = None
) -> tuple[Stage, ...]:
    """The steps of a network as functions; a network without steps is one. `before` runs ahead of the first."""
    runs: list[Stage] = [partial(run_steps, net, [step], size=size) for step in steps]
    if before is not None:
        first, unmerge = runs[0], before
        runs[0] = lambda value: first(unmerge(value))
    return tuple(runs) or (lambda value: logits_of(net(value)),)


def _passing(run: Callable[[Tensor], Any]) -> Stage:
    """A stage that is only run for what happens inside."""

    def stage(value: Tensor) -> Tensor:
        run(value)
        return value

    return stage

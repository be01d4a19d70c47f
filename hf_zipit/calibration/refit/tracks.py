"""The networks that a refit runs: trunk and heads of the merged model, and the same of every parent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from hf_zipit.calibration.refit.replay import Track
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.rerun import Outline
from hf_zipit.models.resume import Steps
from hf_zipit.models.steps import step_runs
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan

Stage = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tracks:
    """The trunk of a model, and its heads. Each track runs from the image on."""

    trunk: Track
    heads: list[Track]


def network_of(source: Source) -> nn.Module:
    """The network that computes a parent's outputs.

    It is more than `source.model` where that is only a backbone, or the trunk of a merge.
    """
    whole = source.network if source.trunk is not None or isinstance(source.model, Steps) else None
    return source.model if whole is None else whole


def merged_tracks(model: Any, size: Sequence[int]) -> Tracks:
    """Trunk and heads of a merged model. Heads with decoders around a shared backbone run in one stage.

    Args:
        model: the merged model, in eval mode.
        size: height and width of the images.
    """
    trunk = model.config.trunk or []
    if isinstance(model, ZipItForImageClassification):
        stages = step_stages(model.trunk, trunk, size, model.outline)
        heads = [
            Track(head, (*stages, *step_stages(head, model.config.head or [], size, model.outline, unmerge)))
            for head, unmerge in zip(model.heads, model.unmerge, strict=True)
        ]
    else:
        stages = step_stages(model.trunk, trunk, size)
        heads = [
            Track(head, (_passing(partial(model, tasks=task)),))
            for head, task in zip(model.heads, model.config.tasks, strict=True)
        ]
    return Tracks(Track(model.trunk, stages), heads)


def parent_tracks(source: Source, network: nn.Module, plan: Plan, size: Sequence[int]) -> Tracks:
    """Those tracks of a parent that correspond to the merged model's.

    Args:
        source: the parent.
        network: a working copy of what `network_of` returns for it.
        plan: where trunk and heads meet.
        size: height and width of the images.
    """
    if source.trunk is not None:
        return merged_tracks(network, size)
    trunk = plan.binding.calls(plan.trunk)
    if isinstance(source.model, Steps):
        view = working_copy(source.model, next(network.parameters()).device)
        return Tracks(Track(view, step_stages(view, trunk, size)), [Track(network, (_passing(network),))])
    whole = tuple(plan.binding.runs(network, size)) or (lambda value: logits_of(network(value)),)
    return Tracks(Track(network, whole[: plan.depth] or whole), [Track(network, whole)])


def step_stages(
    net: nn.Module,
    steps: Sequence[str],
    size: Sequence[int],
    outline: Outline | None = None,
    before: nn.Module | None = None,
) -> tuple[Stage, ...]:
    """The steps of a network as functions. A network without steps is one function.

    Args:
        net: the network.
        steps: its steps with their arguments, as `Binding.calls` gives them.
        size: height and width of the images.
        outline: as for `run_steps`.
        before: a module that runs ahead of the first step.
    """
    runs: list[Stage] = list(step_runs(net, steps, size, outline))
    if before is not None:
        first, unmerge = runs[0], before
        runs[0] = lambda value: first(unmerge(value))
    return tuple(runs) or (lambda value: logits_of(net(value)),)


def _passing(run: Callable[[Tensor], Any]) -> Stage:
    """A stage that returns its input: only what happens inside is of interest."""

    def stage(value: Tensor) -> Tensor:
        run(value)
        return value

    return stage

"""Restrict the spec of a backbone to the steps that several models share."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.backbones.prefix import Prefix
from hf_zipit.models.resume import Steps, method_of
from hf_zipit.specs.spaces import Binding, FeatureSpace, Probe
from hf_zipit.transform.permute import TOLERANCE, permuted, random_labels, randomise

Outputs = Mapping[str, tuple[str, int]]  # step -> space of its output, and axis of the units


def renamed_weights(model: nn.Module, own: Prefix, path: str) -> dict[str, str]:
    """New names of the weights of steps that are methods, because such a step holds the weights of its module.

    Args:
        model: The reference model.
        own: Its prefix.
        path: Path of the backbone in it.

    Returns:
        Name of the weight in the backbone -> its name in the steps.
    """
    start = f"{path}." if path else ""
    found: dict[str, str] = {}
    for step, held in zip(own.steps, own.holds, strict=True):
        above, _, method = step.rpartition(".")
        inside = f"{above}."[len(start) :] if above else ""
        if method_of(model, step)[1]:
            found |= {f"{inside}{name}": f"{inside}{method}.{name}" for name in held}
    return found


def restricted(
    binding: Binding,
    view: Steps,
    renamed: Mapping[str, str],
    prefixes: Sequence[Prefix],
    size: tuple[int, int, int],
) -> tuple[Binding, Outputs]:
    """Restrict a binding to some steps.

    Args:
        binding: A spec bound to the backbone.
        view: The steps, with the weights of one model.
        renamed: New names of weights, see `renamed_weights`.
        prefixes: The prefix of each model.
        size: Channels, height and width of an image.

    Returns:
        A binding with the given steps as its chain, and the outputs of these steps.
    """
    part = _with_weights_of(view, binding, renamed)
    outputs = find_outputs(view, part, size)
    steps = list(view.paths)
    spaces = {name: _observed(space, steps, outputs) for name, space in part.spaces.items()}
    after = _cut_spaces(steps, prefixes, outputs)
    plain = replace(part, spaces=spaces, owns={step: (step,) for step in steps}, after=after)
    if binding.spec.interrupts:  # these steps are modules, whatever the spec's own steps are
        plain = replace(plain, spec=replace(binding.spec, chain=()), arguments={})
    return plain, outputs


def _with_weights_of(view: Steps, binding: Binding, renamed: Mapping[str, str]) -> Binding:
    """A binding with only the rows and spaces of the weights of some steps."""
    names = set(view.state_dict())
    table = [replace(row, parameter=renamed.get(row.parameter, row.parameter)) for row in binding.table]
    rows = tuple(row for row in table if row.parameter in names)
    used = {row.space for row in rows}
    spaces = {name: space for name, space in binding.spaces.items() if name in used}
    return replace(binding, spaces=spaces, table=rows, classifier=(), unmatched=())


def _cut_spaces(steps: Sequence[str], prefixes: Sequence[Prefix], outputs: Outputs) -> dict[str, str | None]:
    """Step -> the space of its output; `None` where some model reads an output that is no single space."""
    after: dict[str, str | None] = {}
    for depth, step in enumerate(steps, 1):
        read = {number for prefix in prefixes for number in prefix.taps(depth)}
        legal = step in outputs and all(steps[number] in outputs for number in read)
        after[step] = outputs[step][0] if legal else None
    return after


@torch.no_grad()
def find_outputs(view: Steps, binding: Binding, size: tuple[int, int, int]) -> Outputs:
    """The space and the axis of each step's output, found by permuting the units of all spaces."""
    net = copy.deepcopy(view).double().eval()
    randomise(net, seed=0)
    labels = random_labels(binding, seed=0)
    moved: Any = permuted(net, binding, labels)
    pixels = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = {}
    for step, a, b in zip(view.paths, net.outputs(pixels), moved.outputs(pixels), strict=True):
        tolerance = TOLERANCE * float(a.abs().max() + 1)
        for name, axis in _candidates(a, binding):
            if torch.allclose(b.index_select(axis, labels[name]), a, rtol=0, atol=tolerance):
                found[step] = (name, axis)
                break
    return found


def _candidates(value: Tensor, binding: Binding) -> Iterator[tuple[str, int]]:
    """Spaces and axes whose sizes fit a tensor: the last axis of tokens (3 axes), axis 1 or the last one of maps."""
    for axis in (-1,) if value.ndim == 3 else (1, -1):
        for name, space in binding.spaces.items():
            if space.size == value.shape[axis] and space.size > 1:
                yield name, axis


def _observed(space: FeatureSpace, steps: Sequence[str], outputs: Outputs) -> FeatureSpace:
    """The space with its probes inside the shared steps; if none is, with the last step whose output is the space."""
    starts = tuple(f"{step}." for step in steps)
    inside = tuple(probe for probe in space.probes if f"{probe.module}.".startswith(starts))
    if inside or not space.probes:
        return replace(space, probes=inside)
    showing = [step for step in steps if step in outputs and outputs[step][0] == space.name]
    return replace(space, probes=tuple(Probe(step, "out", last=outputs[step][1] == -1) for step in showing[-1:]))

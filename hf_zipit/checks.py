"""Checks of a spec against a model: coverage, function preservation, probes and steps.

All of them permute the units of every space at random through the same `transform` that merges models, on float64
copies with random parameters and norm statistics (fresh models hide mistakes behind zero-initialised branches).
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.errors import SpecError
from hf_zipit.models.steps import run_steps
from hf_zipit.running import logits_of
from hf_zipit.specs.spaces import Binding, Probe
from hf_zipit.statistics.probes import samples, units
from hf_zipit.transform.permute import TOLERANCE, permuted, random_labels, randomise


@dataclass(frozen=True)
class SpecReport:
    """What a passed check found: numbers of spaces, table rows and cuts, and the largest change of a logit."""

    family: str
    spaces: int
    grouped: int
    rows: int
    cuts: int
    difference: float


@torch.no_grad()
def check_spec(model: nn.Module, binding: Binding, input_size: tuple[int, int, int], seed: int = 0) -> SpecReport:
    """Check that a binding describes a model. Coverage was checked when it was bound.

    * function preservation: permuting every space leaves the logits as they were;
    * probes: every probed tensor comes out permuted by its own space;
    * steps: their composition is the model, and after each step the declared space is alive.

    Raises:
        SpecError: a check fails; the message names the spaces, the probe or the step.
    """
    net = randomise(copy.deepcopy(model).double().eval(), seed)
    pixels = torch.randn(2, *input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = random_labels(binding, seed)
    moved = permuted(net, binding, labels)
    logits = logits_of(net(pixels))
    difference = float((logits_of(moved(pixels)) - logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
        wrong = [name for name in labels if _changes(net, binding, {name: labels[name]}, pixels, logits)]
        raise SpecError(
            f"{binding.spec.file}: permuting units changes the logits of {type(model).__name__} by {difference:.1e}; "
            f"wrong or incomplete: {', '.join(wrong) or 'a combination of spaces'}"
        )
    _check_probes(net, moved, binding, labels, pixels)
    _check_steps(net, moved, binding, labels, pixels, logits)
    grouped = sum(space.groups > 1 for space in binding.spaces.values())
    return SpecReport(
        binding.spec.family, len(binding.spaces), grouped, len(binding.table), len(binding.cuts), difference
    )


def _changes(net: nn.Module, binding: Binding, labels: Mapping[str, Tensor], pixels: Tensor, logits: Tensor) -> bool:
    return not _close(logits_of(permuted(net, binding, labels)(pixels)), logits)


def _check_probes(
    net: nn.Module, moved: nn.Module, binding: Binding, labels: Mapping[str, Tensor], pixels: Tensor
) -> None:
    points = {(p, space.size) for space in binding.spaces.values() for p in space.probes}
    before, after = _observe(net, points, pixels), _observe(moved, points, pixels)
    for name, space in binding.spaces.items():
        for probe in space.probes:
            a, b = before.get(probe), after.get(probe)
            if a is None or b is None:
                raise SpecError(f"{binding.spec.file}: probe {probe.module}.{probe.side} of '{name}' never runs")
            if a.shape[-1] != space.size or not _close(b.index_select(-1, labels[name]), a):
                raise SpecError(f"{binding.spec.file}: probe {probe.module}.{probe.side} does not show space '{name}'")


def _observe(net: nn.Module, points: Iterable[tuple[Probe, int]], pixels: Tensor) -> dict[Probe, Tensor]:
    seen: dict[Probe, Tensor] = {}
    handles = []
    for point, width in points:
        target = net.get_submodule(point.module)
        keep = lambda value, probe=point, size=width: seen.update({probe: samples(units(value, probe, size))})  # noqa: E731
        if point.side == "in":
            handles.append(target.register_forward_pre_hook(lambda _, args, keep=keep: keep(args[0])))
        else:
            handles.append(target.register_forward_hook(lambda _, __, out, keep=keep: keep(out)))
    net(pixels)
    for handle in handles:
        handle.remove()
    return seen


def _check_steps(
    net: nn.Module, moved: nn.Module, binding: Binding, labels: Mapping[str, Tensor], pixels: Tensor, logits: Tensor
) -> None:
    if not binding.steps:
        return
    a = b = pixels
    for step in binding.steps:
        try:
            a, b = (run_steps(part, binding.calls([step]), x, pixels.shape[-2:]) for part, x in ((net, a), (moved, b)))
        except (RuntimeError, TypeError, AttributeError, KeyError) as error:
            raise SpecError(f"{binding.spec.file}: step {step} cannot run where it stands: {error}") from None
        space = binding.after[step]
        back, axis = b, binding.axis(b.ndim)
        if space is not None:
            if b.shape[axis] != binding.spaces[space].size:
                raise SpecError(f"{binding.spec.file}: after step {step} there is no tensor of space '{space}'")
            back = b.index_select(axis, labels[space])
        if not _close(back, a):
            raise SpecError(f"{binding.spec.file}: after step {step} another space than '{space}' is alive")
    if a.shape != logits.shape or not _close(a, logits):
        raise SpecError(f"{binding.spec.file}: the steps of chain: do not compose to the model")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))

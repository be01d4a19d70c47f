"""Check a spec against a model: function preservation, probes and steps.

Every check permutes the units of all spaces at random, through the same transform that merges models, and compares a
float64 copy with random parameters before and after.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_zipit.errors import SpecError
from hf_zipit.running import logits_of
from hf_zipit.specs.spaces import Binding, Probe
from hf_zipit.statistics.probes import Reader
from hf_zipit.text import first_line
from hf_zipit.transform.permute import TOLERANCE, permuted, random_labels, randomise


@dataclass(frozen=True)
class SpecReport:
    """The result of a check that passed.

    Attributes:
        family: Model family of the spec.
        spaces: Number of feature spaces.
        grouped: Number of spaces with several groups.
        rows: Number of rows of the table.
        cuts: Number of legal cuts.
        difference: Largest change of a logit under a permutation.
    """

    family: str
    spaces: int
    grouped: int
    rows: int
    cuts: int
    difference: float


@torch.no_grad()
def check_spec(model: nn.Module, binding: Binding, input_size: tuple[int, int, int], seed: int = 0) -> SpecReport:
    """Check that a binding describes a model. `bind` has already checked that it covers all parameters.

    * Function preservation: permuting every space leaves the logits unchanged.
    * Probes: every probed tensor is permuted like its own space.
    * Steps: their composition is the model, each works with the modules and parameters that it names, and its output
      belongs to the declared space.

    Args:
        model: The model; it is not changed.
        binding: The spec bound to the model.
        input_size: Channels, height and width of an image.
        seed: Seed of the parameters, the images and the permutations.

    Raises:
        SpecError: a check fails; the message names the spaces, the probe or the step.
    """
    net = randomise(copy.deepcopy(model).double().eval().requires_grad_(False), seed)
    pixels = torch.randn(2, *input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    labels = random_labels(binding, seed)
    moved = permuted(net, binding, labels)
    with FlopCounterMode(display=False) as counter:
        logits = logits_of(net(pixels))
    difference = float((logits_of(moved(pixels)) - logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
        wrong = [name for name in labels if _changes(net, binding, {name: labels[name]}, pixels, logits)]
        raise SpecError(
            f"{binding.spec.file}: permuting units changes the logits of {type(model).__name__} by {difference:.1e}; "
            f"wrong or incomplete: {', '.join(wrong) or 'a combination of spaces'}"
        )
    _check_probes(net, moved, binding, labels, pixels)
    _check_steps(net, moved, binding, labels, pixels, logits, counter.get_total_flops())
    grouped = sum(space.groups > 1 for space in binding.spaces.values())
    return SpecReport(
        family=binding.spec.family,
        spaces=len(binding.spaces),
        grouped=grouped,
        rows=len(binding.table),
        cuts=len(binding.cuts),
        difference=difference,
    )


def _changes(net: nn.Module, binding: Binding, labels: Mapping[str, Tensor], pixels: Tensor, logits: Tensor) -> bool:
    return not _close(logits_of(permuted(net, binding, labels)(pixels)), logits)


def _check_probes(
    net: nn.Module, moved: nn.Module, binding: Binding, labels: Mapping[str, Tensor], pixels: Tensor
) -> None:
    before = _observe(net, binding, pixels)
    after = _observe(moved, binding, pixels)
    for name, space in binding.spaces.items():
        for probe in space.probes:
            point = f"{probe.module}.{probe.side}"
            if not before[name, probe] or not after[name, probe]:
                raise SpecError(f"{binding.spec.file}: probe {point} of '{name}' never runs")
            a, b = before[name, probe][-1], after[name, probe][-1]
            if not _close(b.index_select(-1, labels[name]), a):
                raise SpecError(f"{binding.spec.file}: probe {point} does not show space '{name}'")


def _observe(net: nn.Module, binding: Binding, pixels: Tensor) -> dict[tuple[str, Probe], list[Tensor]]:
    """What each probe of each space shows in a forward pass, once per call of its module."""
    points = [(name, probe) for name, space in binding.spaces.items() for probe in space.probes]
    spaces = {str(i): replace(binding.spaces[name], probes=(probe,)) for i, (name, probe) in enumerate(points)}
    with Reader(net, spaces, positions=None) as reader:
        net(pixels)
    return {point: reader.pop(str(i)) for i, point in enumerate(points)}


class StepError(SpecError):
    """A step of a chain is wrong.

    Attributes:
        step: the step after which the model cannot be cut.
    """

    def __init__(self, binding: Binding, step: str, message: str) -> None:
        super().__init__(f"{binding.spec.file}: {message}")
        self.step = step


def _check_steps(
    net: nn.Module,
    moved: nn.Module,
    binding: Binding,
    labels: Mapping[str, Tensor],
    pixels: Tensor,
    logits: Tensor,
    flops: int,
) -> None:
    """Check the steps; `logits` and `flops` are those of the whole model."""
    if not binding.steps:
        return
    runs = [binding.runs(model, pixels.shape[-2:]) for model in (net, moved)]
    a = b = pixels
    before = binding.steps[0]
    spent = 0
    for number, step in enumerate(binding.steps):
        try:
            with _only_its_tensors(net, binding, step), FlopCounterMode(display=False) as counter:
                a = runs[0][number](a)
            with _only_its_tensors(moved, binding, step):
                b = runs[1][number](b)
        except Exception as error:  # a model may raise anything when it is interrupted
            raise StepError(
                binding, before, f"step {step} cannot run after the steps before it: {first_line(error)}"
            ) from None
        spent += counter.get_total_flops()
        _check_space(binding, step, labels, a, b)
        before = step
    if a.shape != logits.shape or not _close(a, logits):
        raise SpecError(f"{binding.spec.file}: the steps of chain: do not compose to the model")
    if binding.spec.interrupts and spent != flops:
        raise SpecError(f"{binding.spec.file}: the steps of chain: cost {spent} FLOPs, but the model {flops}")


@contextmanager
def _only_its_tensors(net: nn.Module, binding: Binding, step: str) -> Iterator[None]:
    """Set tensors to zero that neither the step nor a module of another step holds: a part of a merge lacks them."""
    modules = {path for path, _ in net.named_modules()}
    held = tuple(f"{name}." for names in binding.owns.values() for name in names if name in modules)
    mine = (*held, *(f"{name}." for name in binding.owns[step]))
    others = [tensor for name, tensor in net.state_dict().items() if not f"{name}.".startswith(mine)]
    values = [tensor.clone() for tensor in others]
    for tensor in others:
        tensor.zero_()
    try:
        yield
    finally:
        for tensor, value in zip(others, values, strict=True):
            tensor.copy_(value)


def _check_space(binding: Binding, step: str, labels: Mapping[str, Tensor], a: Tensor, b: Tensor) -> None:
    """Check that the output of a step belongs to its space: `b` is that of the permuted model."""
    space = binding.after[step]
    axis = binding.axis(b.ndim)
    if space is not None and b.shape[axis] != binding.spaces[space].size:
        raise StepError(binding, step, f"the output of step {step} has not the size of space '{space}'")
    back = b if space is None else b.index_select(axis, labels[space])
    if not _close(back, a):
        raise StepError(binding, step, f"the output of step {step} does not belong to space '{space}'")


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))

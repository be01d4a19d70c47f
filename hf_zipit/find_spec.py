"""Find the spec of a source model and bind it: the user's file, a shipped family, or a trace of the model.

Also the two commands on specs: `describe` writes the spec of a model of any class, and `review` compares a spec with a
trace.
"""

import copy
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_zipit.checks import SpecReport, StepError, check_spec
from hf_zipit.errors import SpecError, TraceError
from hf_zipit.sources.source import Source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.grammar import ProbeLine, Spec
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import some
from hf_zipit.tracing.check import fixed_share, same_grouping, tally
from hf_zipit.tracing.cuts import chain_of, check_cuts
from hf_zipit.tracing.parts import parts_of, why_whole, without
from hf_zipit.tracing.solve import Trace
from hf_zipit.tracing.tracer import trace
from hf_zipit.tracing.writer import write_spec

_log = logging.getLogger("hf_zipit")


def find_spec(source: Source, spec: str | Path | None = None, *, checked: bool = True) -> Binding:
    """Bind the spec of a model: the user's file, else the shipped file of its family, else a trace.

    A user's spec is checked against the model. A shipped spec is checked only for architectures that it does not list
    under `check:`. If a shipped spec does not fit, the reason is logged and the model is traced.

    Args:
        source: The model.
        spec: Path of a spec file.
        checked: `False` skips the checks.

    Raises:
        SpecError: the spec does not describe the model.
        TraceError: no spec describes the model, and it cannot be traced.
    """
    if spec is not None:
        binding = _bind_own(specs.read(spec), source)
        if checked:
            check_spec(source.model, binding, source.input_size)
        return binding
    shipped = _shipped(source)
    if shipped is not None:
        try:
            binding = bind(shipped, source.model)
            if checked and not _reviewed(source, shipped):
                check_spec(source.model, binding, source.input_size)
            return binding
        except SpecError as error:
            _log.warning("%s", error)
    return bind(specs.parse(trace_source(source), "traced"), source.model)


def trace_source(source: Source) -> str:
    """Trace and check a model that no spec describes, log this, and return the text of its spec.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the traced spec fails a check.
    """
    text, held = traced(source)
    kind = type(source.model).__name__
    _log.warning(
        "no spec describes this %s: its feature spaces were traced and checked (%s); keep the result with "
        "`hf-zipit trace MODEL -o FILE`, and give it with --spec",
        *(kind, held),
    )
    if why := why_uncut(source, text):
        _log.warning("%s", why)
    return text


def traced(source: Source) -> tuple[str, str]:
    """Trace and check a model of any class.

    Returns:
        The text of its spec, and a summary of what is fixed: a percentage, and the most frequent reasons.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the traced spec fails a check.
    """
    pixels = torch.randn(1, *source.input_size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(source.model).float().eval()
    found = trace(model, pixels)
    text = describe(model, pixels, f"traced-{type(model).__name__.lower()}", found)
    binding = bind(specs.parse(text), model)
    reasons = [reason for reason, _ in tally(found).most_common(3)]
    if binding.held:
        reasons.append(f"what a spec cannot say, or no module shows, in {some(sorted({n for n, _ in binding.held}))}")
    summary = f"{100 * fixed_share(found, binding):.1f} % of parameter indices held fixed"
    summary += f": {', '.join(reasons)}" if reasons else ""
    return text, summary


def why_uncut(source: Source, text: str) -> str:
    """Why a traced model cannot be cut, as a sentence; `""` if it can be.

    Args:
        source: The model.
        text: The spec that its trace has found.
    """
    model = copy.deepcopy(source.model).float().eval()
    if bind(specs.parse(text), model).cuts:
        return ""
    pixels = torch.randn(1, *source.input_size, generator=torch.Generator().manual_seed(0))
    return f"this {type(model).__name__} cannot be cut: {why_whole(model, pixels, trace(model, pixels))}"


def describe(model: nn.Module, pixels: Tensor, family: str, traced: Trace | None = None) -> str:
    """Write the spec of a traced model, and check it like a shipped one.

    The spec has a chain if the model is a chain of modules, or if its forward can be interrupted, and the check of the
    steps passes.

    Args:
        model: The model.
        pixels: One image, (1, channels, height, width).
        family: Name of the family, for the spec file.
        traced: The trace of the model; by default, it is traced here.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the spec fails a check, so the trace cannot be trusted.

    >>> bind(parse(describe(model, pixels, "mine")), model).cuts[:2]  # doctest: +SKIP
    ('conv1', 'bn1')
    """
    found = traced or trace(model, pixels)
    size = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    plain = write_spec(found, model, family)
    if steps := chain_of(model, pixels):
        text = write_spec(found, model, family, steps)
        for tried in (text, _channels_last(text)):
            with suppress(SpecError):
                check_spec(model, bind(specs.parse(tried, family), model), size)
                return tried
    divided = _in_parts(model, pixels, family, found)
    if divided is None:
        check_spec(model, bind(specs.parse(plain, family), model), size)
    return divided or plain


def _channels_last(text: str) -> str:
    return text.replace("\nchain:", "\nchannels: last\nchain:", 1)


def _in_parts(model: nn.Module, pixels: Tensor, family: str, traced: Trace) -> str | None:
    """The spec with a chain of parts of the forward pass, with the most cuts; `None` if none passes the check."""
    best: tuple[int, str | None] = (0, None)
    for last in (False, True):
        parts = parts_of(model, pixels, traced, last)
        while len(parts) - 1 > best[0]:
            text = write_spec(traced, model, family, parts)
            binding = bind(specs.parse(_channels_last(text) if last else text, family), model)
            try:
                check_spec(model, binding, (pixels.shape[1], pixels.shape[2], pixels.shape[3]))
            except StepError as error:
                parts = without(parts, error.step)
            except SpecError:
                break
            else:
                best = (len(binding.cuts), binding.spec.text)
                break
    return best[1]


@dataclass(frozen=True)
class Review:
    """The result of a review that passed.

    Attributes:
        report: The result of the check against the model.
        unseen: Operations for which the trace holds units fixed that the spec leaves free.
        held: Parameters with units that the spec holds fixed, although they are free in the model.
        not_traced: Why the model could not be traced; `""` if it was.
    """

    report: SpecReport
    unseen: tuple[str, ...]
    held: tuple[str, ...]
    not_traced: str


def review(model: nn.Module, binding: Binding, input_size: tuple[int, int, int]) -> Review:
    """Check a spec in every way: against the model, against a trace of the model, and its cuts.

    Args:
        model: The model.
        binding: The spec bound to the model.
        input_size: Channels, height and width of an image.

    Raises:
        SpecError: a check fails.

    >>> review(model, binding, (3, 224, 224)).not_traced  # doctest: +SKIP
    ''
    """
    report = check_spec(model, binding, input_size)
    pixels = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    net = copy.deepcopy(model).float().eval()
    held = tuple(sorted({name for name, _ in binding.held}))
    try:
        traced = trace(net, pixels)
        check_cuts(net, binding, pixels)
    except TraceError as error:
        return Review(report, (), held, str(error))
    return Review(report, same_grouping(traced, binding), held, "")


def _shipped(source: Source) -> Spec | None:
    """The shipped spec for the model's class."""
    classes = [f"{c.__module__}.{c.__qualname__}" for c in type(source.model).__mro__]
    return next((spec for spec in specs.list_specs() if specs.matches(spec, classes)), None)


def _reviewed(source: Source, spec: Spec) -> bool:
    """Whether the check can be skipped: the spec's tests cover the architecture, or the model has no weights."""
    architecture = str(source.backbone.get("architecture"))
    known = architecture in spec.check or f"transformers.{architecture}" in spec.check
    return known or any(p.is_meta for p in source.model.parameters())


def _bind_own(spec: Spec, source: Source) -> Binding:
    """Bind a user's spec. Every line must match something, unless the spec is of a shipped family."""
    binding = bind(spec, source.model)
    if binding.unmatched and spec.family not in {known.family for known in specs.list_specs()}:
        line = binding.unmatched[0]
        target = line.module if isinstance(line, ProbeLine) else line.target
        raise SpecError(
            f"{spec.file}:{line.number}: '{target}' matches nothing in {source.name}: remove the line, or correct it"
        )
    return binding

"""Source models: Hub ids, local folders or loaded modules -> `Source`, and whether they can be merged."""

import copy
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hf_zipit.checks import SpecReport, check_spec
from hf_zipit.errors import SpecError, TraceError
from hf_zipit.sources.source import Source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.grammar import ProbeLine, Spec
from hf_zipit.specs.spaces import Binding
from hf_zipit.tracing.check import (
    same_grouping,
    tally,
)
from hf_zipit.tracing.cuts import chain_of, check_cuts
from hf_zipit.tracing.solve import Trace
from hf_zipit.tracing.tracer import trace
from hf_zipit.tracing.writer import write_spec

_log = logging.getLogger("hf_zipit")


def find_spec(source: Source, spec: str | Path | None = None, *, checked: bool = True) -> Binding:
    """Bind the family spec of a model, or the spec file given by the user.

    Unless told otherwise, a user's spec is checked, and a shipped one for an architecture that it does not name under
    `check:`. A model that no shipped spec describes is traced.

    Raises:
        SpecError: the spec does not describe the model.
        TraceError: there is no spec for its class, and it cannot be traced.
    """
    if spec is not None:
        binding = _bind_own(specs.read(spec), source)
        if checked:
            check_spec(source.model, binding, source.input_size)
        return binding
    classes = [f"{c.__module__}.{c.__qualname__}" for c in type(source.model).__mro__]
    known = specs.list_specs()
    for candidate in known:
        if specs.matches(candidate, classes):
            try:
                binding = bind(candidate, source.model)
                if checked and not _reviewed(source, candidate):
                    check_spec(source.model, binding, source.input_size)
                return binding
            except SpecError as error:
                _log.warning("%s", error)
                break
    return bind(specs.parse(trace_source(source), "traced"), source.model)


def _reviewed(source: Source, spec: Spec) -> bool:
    """Whether the spec's own tests cover this architecture; without weights nothing can be checked."""
    architecture = str(source.backbone.get("architecture"))
    known = architecture in spec.check or f"transformers.{architecture}" in spec.check
    return known or any(p.is_meta for p in source.model.parameters())


def _bind_own(spec: Spec, source: Source) -> Binding:
    """Bind a user's spec. Only a shipped family may have lines for variants that this model is not."""
    binding = bind(spec, source.model)
    if binding.unmatched and spec.family not in {known.family for known in specs.list_specs()}:
        line = binding.unmatched[0]
        target = line.module if isinstance(line, ProbeLine) else line.target
        raise SpecError(
            f"{spec.file}:{line.number}: '{target}' matches nothing in {source.name}: remove the line, or correct it"
        )
    return binding


def trace_source(source: Source) -> str:
    """The text of a spec for a model that no spec describes, traced from one forward pass and checked; the log tells.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the traced spec fails a check.
    """
    (text, held), kind = traced(source), type(source.model).__name__
    _log.warning("no spec describes this %s: its feature spaces were traced and checked (%s)", kind, held)
    return text


def traced(source: Source) -> tuple[str, str]:
    """The text of a spec for a model of any class, and how much of the model it holds fixed and why.

    Raises:
        TraceError, SpecError: as for `trace_source`.
    """
    pixels = torch.randn(1, *source.input_size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(source.model).float().eval()
    found = trace(model, pixels)
    text = describe(model, pixels, f"traced-{type(model).__name__.lower()}", found)
    reasons = ", ".join(reason for reason, _ in tally(found).most_common(3))
    return text, f"{100 * found.share:.1f} % of places held fixed{': ' if reasons else ''}{reasons}"


def describe(model: nn.Module, pixels: Tensor, family: str, traced: Trace | None = None) -> str:
    """Trace a model (unless its trace is given), write its spec, and check it as a shipped one is checked.

    The spec has a chain if there is one whose cuts hold what the wiring says.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the spec that was written fails a check, so the trace is not to be trusted.

    >>> bind(parse(describe(model, pixels, "mine")), model).cuts[:2]  # doctest: +SKIP
    ('conv1', 'bn1')
    """
    channels, height, width = pixels.shape[1:]
    found = traced or trace(model, pixels)
    plain = write_spec(found, model, family)
    if steps := chain_of(model, pixels):
        chained = write_spec(found, model, family, steps)
        for text in (chained, chained.replace("\nchain: ", "\nchannels: last\nchain: ", 1)):
            with suppress(SpecError):
                check_spec(model, bind(specs.parse(text, family), model), (channels, height, width))
                return text
    check_spec(model, bind(specs.parse(plain, family), model), (channels, height, width))
    return plain


@dataclass(frozen=True)
class Review:
    """What a spec was found to say, and how it compares with a trace of the model.

    `unseen` names what kept the trace from speaking about a place that the spec leaves free; `not_traced` is why there
    is no trace at all, "" where there is one.
    """

    report: SpecReport
    unseen: tuple[str, ...]
    not_traced: str


def review(model: nn.Module, binding: Binding, input_size: tuple[int, int, int]) -> Review:
    """Every check of a spec: that it describes the model, ties neither too much nor too little, and cuts legally.

    Raises:
        SpecError: a check fails.

    >>> review(model, binding, (3, 224, 224)).not_traced  # doctest: +SKIP
    ''
    """
    report = check_spec(model, binding, input_size)
    pixels = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    net = copy.deepcopy(model).float().eval()
    try:
        traced = trace(net, pixels)
        check_cuts(net, binding, pixels)
    except TraceError as error:
        return Review(report, (), str(error))
    return Review(report, same_grouping(traced, binding), "")

"""Trace the first steps of a model whose other layers no trace can follow.

The decoders of detectors choose their queries by score, use layers several times, and share weights between them. None
of this matters to a backbone before them.
"""

import copy
import itertools
import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_zipit.backbones.prefix import Prefix
from hf_zipit.backbones.restrict import find_outputs
from hf_zipit.errors import SourceError, SpecError, TraceError
from hf_zipit.find_spec import traced
from hf_zipit.models.resume import Steps, find_step
from hf_zipit.sources.source import Source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.grammar import Spec
from hf_zipit.specs.spaces import Binding

_log = logging.getLogger("hf_zipit")


class _Read(Steps):
    """The steps of a prefix, each output that the rest of the model reads being read by a layer.

    Without a reader an output would be that of the model, whose units have an order.
    """

    def __init__(self, steps: Steps, read: dict[int, Tensor]) -> None:
        super().__init__({path: steps.get_submodule(path) for path in steps.paths})
        self.readers = nn.ModuleDict({str(number): _reader(value) for number, value in read.items()})

    def forward(self, value: Tensor) -> Tensor:
        """What the readers make of the outputs, `(B, values)`."""
        found = [self.readers[str(i)](out) for i, out in enumerate(self.outputs(value)) if str(i) in self.readers]
        return torch.cat([out.flatten(1) for out in found], 1)


def trace_prefix(source: Source, prefix: Prefix, spec: Spec | None = None) -> tuple[Binding, int]:
    """Trace and check the first steps of a model, up to the first whose units have an order.

    They have one where values that belong to a place in it are added to them, such as sines of positions.

    Args:
        source: the model; it is not changed.
        prefix: its steps.
        spec: what an earlier trace of such a model has found, which is then used.

    Returns:
        The spec of these steps, bound to them, and their number.

    Raises:
        SourceError: they cannot be traced, or not one step can be run by itself.
    """
    kind = type(source.model).__name__
    depth = len(prefix.steps)
    try:
        while depth:
            steps = Steps({step: find_step(source.model, step) for step in prefix.steps[:depth]})
            readers = _readers(steps, prefix, source)
            found, held = (spec, "") if spec else _traced(source, readers)
            binding = bind(found, readers)
            outputs = find_outputs(readers, binding, source.input_size)
            free = len(list(itertools.takewhile(outputs.__contains__, steps.paths)))
            if free == depth:
                if held:
                    _log.warning("no spec describes this %s: its first layers were traced and checked (%s)", kind, held)
                return binding, depth
            depth = free
    except (SpecError, TraceError) as error:
        raise SourceError(
            f"the backbone of {source.name}, a {kind}, cannot be merged: {error}. Describe it with a spec file (--spec)"
        ) from error
    raise SourceError(
        f"{source.name} cannot be merged: no layer of the {kind} reads the image and nothing "
        "else, and has units that can be matched. Pass its backbone as a module, or describe it with a spec file "
        "(--spec)"
    )


def _traced(source: Source, readers: _Read) -> tuple[Spec, str]:
    """What a trace finds, as a spec of the whole model's class, and a summary of what is fixed."""
    text, held = traced(replace(source, model=readers))
    own, whole = (f"match: [{cls.__module__}.{cls.__qualname__}]" for cls in (_Read, type(source.model)))
    return specs.parse(text.replace(own, whole, 1), "traced"), held


@torch.no_grad()
def _readers(steps: Steps, prefix: Prefix, source: Source) -> _Read:
    """A copy of the steps with a layer behind each output that the rest of the model reads."""
    net = copy.deepcopy(steps).eval()
    like = next(net.parameters())
    outputs = list(net.outputs(torch.zeros(1, *source.input_size).to(like)))
    return _Read(net, {number: outputs[number] for number in prefix.taps(len(steps.paths))})


def _reader(value: Tensor) -> nn.Module:
    """A layer that reads tokens `(B, tokens, D)` or maps `(B, D, H, W)`."""
    return nn.Linear(value.shape[-1], 2) if value.ndim == 3 else nn.Conv2d(value.shape[1], 2, 1)

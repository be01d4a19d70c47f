"""The wiring lines of a spec that is written from a trace, and the modules in which its spaces can be observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_zipit.tracing.solve import Point, Trace

NO_SPACE = -1


@dataclass(frozen=True)
class Term:
    """A part of an axis.

    Attributes:
        form: `plain` for a space once, `tile` for copies of the space side by side, `repeat` for copies of each unit,
            `inside` for groups with held units in them; for a fixed part, the name to write (`.`, `image`, `classes` or
            `held`).
        space: Number of the space in the trace; `NO_SPACE` for a fixed part.
        length: Length of the part.
    """

    form: str
    space: int
    length: int


Expression = tuple[Term, ...]


@dataclass(frozen=True)
class DraftLine:
    """A line of the spec.

    Attributes:
        target: Path of the module or parameter.
        reads: What the module reads or, without `writes`, carries.
        writes: What the module writes.
        axes: One expression per axis, for a parameter that is wired by itself.
    """

    target: str
    reads: Expression = ()
    writes: Expression = ()
    axes: tuple[Expression, ...] = ()

    def spaces(self) -> list[int]:
        """The spaces that the line mentions, in order."""
        found = [t.space for e in (self.writes, self.reads, *self.axes) for t in e if t.space != NO_SPACE]
        return list(dict.fromkeys(found))


class Unwritable(Exception):
    """The grammar cannot express how these spaces lie in a parameter; they will be written as held."""

    def __init__(self, spaces: Sequence[int]) -> None:
        super().__init__(spaces)
        self.spaces = set(spaces)


class Unobserved(Unwritable):
    """No module shows these spaces. Their groups can still move, with units in their order inside."""


def probes_of(
    space: int, lines: Sequence[DraftLine], trace: Trace, modules: Mapping[str, nn.Module]
) -> tuple[tuple[str, str], ...]:
    """The modules that show a space: `(path, "in" or "out")`.

    These are the input of the last layer that reads it, or the inputs of all layers along a stream under layer norms,
    or the output of a module that writes or carries it.

    Args:
        space: Number of the space in the trace.
        lines: The lines of the model.
        trace: The trace.
        modules: The modules of the model, by path.

    Raises:
        Unobserved: no module shows the space.
    """
    layers = [e for e in lines if e.writes]
    inputs = [
        (e.target, "in") for e in layers if _holds(e.reads, space) and _shows((e.target, "in"), space, trace, modules)
    ]
    readers = list({trace.points[point].tensor: point for point in inputs[::-1]}.values())[::-1]
    if readers:
        normed = any(_holds(e.reads, space) and _token_norm(modules.get(e.target)) for e in lines if not e.writes)
        return tuple(readers) if normed and len(readers) > 2 else (readers[-1],)
    writers = [(e.target, "out") for e in layers if any(t.space == space for t in e.writes)]
    carriers = [(e.target, "out") for e in lines if not e.writes and _holds(e.reads, space)]
    for point in (*writers, *carriers):
        if _shows(point, space, trace, modules):
            return (point,)
    raise Unobserved([space])


def _token_norm(module: nn.Module | None) -> bool:
    kind = type(module).__name__  # frozen batch norms are not of the class of batch norms
    channels = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm) or "BatchNorm" in kind
    return "Norm" in kind and not channels


def _shows(point: Point, space: int, trace: Trace, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module's input or output shows the units in order, on the axis that statistics read."""
    found = trace.points.get(point)
    if found is None:  # the module did not run, or was not called as a module, or ran twice
        return False
    last = isinstance(modules[point[0]], nn.Linear) or found.ndim == 3
    units = found.axes.get(found.ndim - 1 if last else 1)
    wanted = torch.tensor(trace.spaces[space].units)
    if units is None or len(units) < len(wanted) or found.mixed(units):
        return False
    return any(torch.equal(part, wanted) for part in units.unfold(0, len(wanted), 1))


def _holds(expression: Expression, space: int) -> bool:
    return len(expression) == 1 and expression[0].form == "plain" and expression[0].space == space

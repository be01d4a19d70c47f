"""The lines of a spec that is being written, and the modules in which their spaces can be observed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hf_zipit.tracing.solve import Point, Trace

NO_SPACE = -1


@dataclass(frozen=True)
class Term:
    """A part of an axis: a space once (`plain`), tiled or repeated, or a fixed part with the name it is written as."""

    form: str
    space: int
    length: int


Expression = tuple[Term, ...]


@dataclass(frozen=True)
class Entry:
    """A line to be: a module that reads and writes, a module that carries (no `writes`), or a parameter (`axes`)."""

    target: str
    reads: Expression = ()
    writes: Expression = ()
    axes: tuple[Expression, ...] = ()

    def spaces(self) -> list[int]:
        """The spaces that the line mentions, in order."""
        found = [t.space for e in (self.writes, self.reads, *self.axes) for t in e if t.space != NO_SPACE]
        return list(dict.fromkeys(found))


class Unwritable(Exception):
    """The grammar cannot say how these spaces lie; they will be written as fixed."""

    def __init__(self, spaces: Sequence[int]) -> None:
        super().__init__(spaces)
        self.spaces = set(spaces)


def probes_of(
    space: int, entries: Sequence[Entry], trace: Trace, modules: Mapping[str, nn.Module]
) -> tuple[tuple[str, str], ...]:
    """Inputs of the layers that read a space: the last one, or all along a stream that layer norms read."""
    layers = [e for e in entries if e.writes]
    inputs = [
        (e.target, "in") for e in layers if _holds(e.reads, space) and _shows((e.target, "in"), space, trace, modules)
    ]
    readers = list({trace.points[point].tensor: point for point in inputs[::-1]}.values())[::-1]
    if readers:
        normed = any(_holds(e.reads, space) and _token_norm(modules.get(e.target)) for e in entries if not e.writes)
        return tuple(readers) if normed and len(readers) > 2 else (readers[-1],)
    writers = [(e.target, "out") for e in layers if any(t.space == space for t in e.writes)]
    carriers = [(e.target, "out") for e in entries if not e.writes and _holds(e.reads, space)]
    for point in (*writers, *carriers):
        if _shows(point, space, trace, modules):
            return (point,)
    raise Unwritable([space])


def _token_norm(module: nn.Module | None) -> bool:
    channels = isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm)
    return "Norm" in type(module).__name__ and not channels


def _shows(point: Point, space: int, trace: Trace, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module's input or output holds the units in order, on the axis where statistics look."""
    found = trace.points.get(point)
    if found is None:  # it did not run, or not as a module, or twice
        return False
    last = isinstance(modules[point[0]], nn.Linear) or found.ndim == 3
    units, wanted = found.axes.get(found.ndim - 1 if last else 1), torch.tensor(trace.spaces[space].units)
    if units is None or len(units) < len(wanted) or found.mixed(units):
        return False
    return any(torch.equal(part, wanted) for part in units.unfold(0, len(wanted), 1))


def _holds(expression: Expression, space: int) -> bool:
    return len(expression) == 1 and expression[0].form == "plain" and expression[0].space == space

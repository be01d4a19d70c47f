"""Collect the table of one model: an expression along an axis of a parameter becomes rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from hf_zipit.errors import SpecError
from hf_zipit.specs.grammar import HELD, Expression, Line, Term
from hf_zipit.specs.names import Names, Scope
from hf_zipit.specs.spaces import Role, Row
from hf_zipit.specs.wired import OPEN, Grouping


@dataclass(frozen=True)
class Origin:
    """Where rows come from: the line being expanded, its file, and the scope of its names."""

    file: str
    line: Line
    scope: Scope

    def error(self, message: str) -> SpecError:
        """An error that names file, line and target."""
        return SpecError(f"{self.file}:{self.line.number} ({self.line.target}): {message}")


@dataclass(frozen=True)
class _Concatenation:
    """An axis `a + b`, to be divided once the sizes of its spaces are known."""

    origin: Origin
    parameter: str
    axis: int
    role: Role
    expression: Expression


class RowBuilder:
    """The table while lines are expanded.

    Attributes:
        tensors: The parameters of the model.
        names: The names of spaces that mean the same space.
        rows: The rows so far; concatenations follow with `divide_concatenations`.
        claimed: Parameter -> the line that describes it.
        group_counts: Group axis -> number of groups.
        groupings: How spaces are divided into groups.
        held: Axes that are written as `held`.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.names = Names()
        self.rows: list[Row] = []
        self.claimed: dict[str, Line] = {}
        self.group_counts: dict[str, int] = {}
        self.groupings: list[Grouping] = []
        self.held: set[tuple[str, int]] = set()
        self._concatenations: list[_Concatenation] = []

    def claim(self, origin: Origin, name: str) -> None:
        """Note that a line describes a parameter.

        Raises:
            SpecError: another line does so already.
        """
        if name in self.claimed:
            raise origin.error(f"{name} is already wired by line {self.claimed[name].number}")
        self.claimed[name] = origin.line

    def add(
        self, origin: Origin, name: str, axis: int, role: Role, expression: Expression, local: bool = False
    ) -> None:
        """Add the row of an axis, or keep a concatenation until the sizes of its spaces are known.

        Args:
            origin: The line that the row comes from.
            name: The parameter.
            axis: The axis of the parameter that the expression describes.
            role: Whether the axis writes, reads or carries the space.
            expression: One term, or several for a concatenation.
            local: Whether the axis is the input axis of a grouped convolution.

        Raises:
            SpecError: the number of groups is unknown.
        """
        if any(HELD in term for term in expression):
            self.held.add((name, axis))
        expression = tuple((term[0], ".") if len(term) == 2 and term[1] == HELD else term for term in expression)
        for term in expression:
            if space := origin.scope.single((term,)):
                self.names.add(space, rank=1 if origin.scope.block else 0)
        if len(expression) > 1:
            self._concatenations.append(_Concatenation(origin, name, axis, role, expression))
        else:
            whole = Row(name, axis, 0, self.tensors[name].shape[axis], role, "", local=local)
            self._complete(origin, whole, expression[0])

    def divide_concatenations(self) -> None:
        """Divide every `a + b` into rows: spaces that other lines give a size take it, the rest is shared equally.

        Raises:
            SpecError: the parts do not add up to the width of the axis.
        """
        whole = [row for row in self.rows if row.before == row.after == 1 and not row.local]
        known = {self.names.find(row.space): row.length for row in whole}
        for concatenation in self._concatenations:
            self._divide(concatenation, known)

    def _divide(self, part: _Concatenation, known: Mapping[str, int]) -> None:
        name, axis = part.parameter, part.axis
        spaces = [part.origin.scope.single((term,)) for term in part.expression]
        sizes = [
            0 if space is None or "." in term else known.get(self.names.find(space), 0)
            for space, term in zip(spaces, part.expression, strict=True)
        ]
        width = self.tensors[name].shape[axis]
        open_parts = sizes.count(0)
        length, rest = divmod(width - sum(sizes), max(open_parts, 1))
        if rest or (length <= 0 if open_parts else length != 0):
            parts = ", ".join(f"{space or '.'} {size or '?'}" for space, size in zip(spaces, sizes, strict=True))
            raise part.origin.error(f"{name}: axis {axis} is {width} wide, which does not fit its parts: {parts}")
        offset = 0
        for term, size in zip(part.expression, sizes, strict=True):
            self._complete(part.origin, Row(name, axis, offset, size or length, part.role, ""), term)
            offset += size or length

    def _complete(self, origin: Origin, row: Row, term: Term) -> None:
        """Add a row with its space and tile counts, unless its term is fixed."""
        space = origin.scope.single((term,))
        if space is None:
            return
        tiled = len(term) == 2 and "." in term
        if len(term) == 2 and not tiled:
            axis = origin.scope(term[0])
            if axis not in self.group_counts:
                raise origin.error(f"{row.parameter}: the number of '{term[0]}' groups is not given under sizes:")
            self.groupings.append(Grouping(space, self.group_counts[axis], axis))
        elif space in self.group_counts:  # the group axis itself: one unit per group
            self.groupings.append(Grouping(space, self.group_counts[space], space))
        before = OPEN if tiled and term[0] == "." else 1
        after = OPEN if tiled and term[1] == "." else 1
        self.rows.append(replace(row, space=space, before=before, after=after))

"""The weights of several models, cut into parts each axis of which runs over one space, or over none.

Everything is read from the binding's flat table; nothing here depends on an architecture.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from hf_zipit.running import STATISTICS
from hf_zipit.specs.spaces import Binding, Row


@dataclass(frozen=True, eq=False)
class Block:
    """A part of one parameter, in all models.

    Attributes:
        spaces: The spaces of the leading axes, one or more.
        values: For each model, `(units of the first space, units of the second, ..., rest)`, float32.
    """

    spaces: tuple[str, ...]
    values: tuple[Tensor, ...]


def blocks_of(states: Sequence[Mapping[str, Tensor]], binding: Binding, spaces: Collection[str]) -> list[Block]:
    """All weights along the given spaces that can be compared between the models.

    Left out are slices along other spaces, classifiers, whose classes differ, and running statistics. The kernel of a
    grouped convolution gets the columns of all groups, with zeros between groups, so that its input axis counts units.

    Args:
        states: State dicts of the N models, all of one width.
        binding: Maps each space to slices of parameters.
        spaces: Names of the spaces.

    >>> from hf_zipit.find_spec import find_spec  # doctest: +SKIP
    >>> [block.spaces for block in blocks_of(states, find_spec(source), ["stem"])]  # doctest: +SKIP
    """
    found = []
    for name, rows in binding.rows(states[0]).items():
        if rows and name not in binding.classifier and not name.endswith(STATISTICS):
            found += list(_cut(name, rows, [state[name].float() for state in states], binding, spaces))
    return found


def _cut(
    name: str, rows: list[Row], values: list[Tensor], binding: Binding, spaces: Collection[str]
) -> Iterator[Block]:
    """The blocks of one parameter."""
    plain = [row for row in rows if not row.local]
    for row in (
        row for row in rows if row.local and row.length > 1
    ):  # a depthwise kernel has one column: its rows tell
        size = binding.spaces[row.space].size
        values = [_spread(value, row.axis, size) for value in values]
        plain.append(replace(row, length=size, local=False))
    axes = range(values[0].ndim)
    parts = [_parts(axis, [r for r in plain if r.axis == axis], values[0].shape[axis]) for axis in axes]
    for chosen in product(*parts):
        mine = [part for part in chosen if part.space]
        if mine and all(part.space in spaces for part in mine):
            yield Block(tuple(part.space for part in mine), tuple(_viewed(value, chosen) for value in values))


def _parts(axis: int, rows: list[Row], length: int) -> list[Row]:
    """An axis as rows side by side; what is fixed in between gets rows without a space."""
    out = []
    done = 0
    for row in sorted(rows, key=lambda row: row.offset):
        if row.offset > done:
            out.append(Row("", axis, done, row.offset - done, "carry", ""))
        out.append(row)
        done = row.offset + row.length
    if length > done:
        out.append(Row("", axis, done, length - done, "carry", ""))
    return out


def _viewed(value: Tensor, chosen: Sequence[Row]) -> Tensor:
    """The part of a parameter that one row of each axis covers, with the axes of units first and one for the rest."""
    shape: list[int] = []
    units: list[int] = []
    for row in chosen:
        value = value.narrow(row.axis, row.offset, row.length)
        if row.space:
            units.append(len(shape) + 1)
            shape += [row.before, row.length // row.before // row.after, row.after]
        else:
            shape.append(row.length)
    value = value.reshape(shape).movedim(units, list(range(len(units))))
    return value.reshape(*value.shape[: len(units)], -1).contiguous()


def _spread(value: Tensor, axis: int, size: int) -> Tensor:
    """The kernel of a grouped convolution as that of an ordinary one: zeros where a row does not read a column."""
    inner = value.shape[axis]
    groups = size // inner
    first = torch.arange(len(value)) // (len(value) // groups) * inner  # of the columns of a row
    index = first[:, None] + torch.arange(inner)
    index = index.view(*index.shape, *[1] * (value.ndim - 2)).expand_as(value)
    return value.new_zeros(len(value), size, *value.shape[2:]).scatter_(1, index, value)

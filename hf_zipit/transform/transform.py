"""Merge state dicts by matches, with gathers and segment sums.

A layer W that reads space p and writes space s becomes `W* = sum_k M_s^k W_k U_p^k` (ZipIt!, eq. 6). Each unit has one
label, `U` copies and `M` averages. So W* sums the input columns that share a label, and averages the output rows that
share a label. No n x n matrix is built, unless the match itself is dense.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding, Row, fitted
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match

State = Mapping[str, Tensor]


def merge_states(
    states: Sequence[State], binding: Binding, matches: Matches, names: Iterable[str]
) -> dict[str, Tensor]:
    """Merge tensors of N state dicts into new tensors.

    Arithmetic is float64; a result has the dtype of the first model's tensor. Integer tensors are copied from the
    first model.

    Args:
        states: One state dict per model; they are not changed.
        binding: The spec bound to the models.
        matches: Space -> match, for every space of the named tensors.
        names: The tensors to merge.
    """
    rows = binding.rows(names)
    return {name: _merged([state[name] for state in states], rows[name], matches) for name in rows}


def unmerge_reads(
    state: State, binding: Binding, matches: Matches, names: Iterable[str], model: int
) -> dict[str, Tensor]:
    """Make tensors of one model read merged units, `W U_k`; their output units stay as they are.

    Args:
        state: The model's state dict; it is not changed.
        binding: The spec bound to the model.
        matches: Space -> match; reads of other spaces stay as they are.
        names: The tensors to change.
        model: The model's number in the matches.
    """
    out = {}
    for name, rows in binding.rows(names).items():
        tensor = state[name]
        reads = [row for row in rows if row.role == "read" and row.space in matches]
        for axis in dict.fromkeys(row.axis for row in reads):
            tensor = along(tensor.double(), axis, [row for row in reads if row.axis == axis], matches, model)
        out[name] = tensor.to(state[name].dtype).clone()
    return out


def _merged(tensors: Sequence[Tensor], rows: Sequence[Row], matches: Matches) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    reads = {row.axis: [r for r in rows if r.axis == row.axis] for row in rows if row.role == "read"}
    writes = [row for row in rows if row.role != "read"]
    total: Tensor | None = None
    count: Tensor | None = None
    for model, tensor in enumerate(tensors):
        value = tensor.double()
        for axis, mine in reads.items():
            value = along(value, axis, mine, matches, model)
        axis = writes[0].axis if writes else 0
        ones = members(writes, matches, model, value.shape[axis] if value.ndim else 1, len(tensors)).to(value)
        value = along(value, axis, writes, matches, model)
        total = value if total is None else total + value
        count = ones if count is None else count + ones
    assert total is not None
    assert count is not None
    shape = [-1 if i == axis else 1 for i in range(total.ndim)]
    return (total / count.view(shape)).to(first.dtype) if total.ndim else (total / len(tensors)).to(first.dtype)


def along(value: Tensor, axis: int, rows: Sequence[Row], matches: Matches, model: int) -> Tensor:
    """Sum the entries along an axis that belong to the same merged unit. Fixed parts of the axis are copied.

    Args:
        value: A parameter of one model.
        axis: The axis to merge.
        rows: All rows of the table for this axis.
        matches: Space -> match, for the spaces of all rows.
        model: The model's number in the matches.
    """
    if not rows:
        return value
    rows = _own(rows, matches, model)
    if not all(isinstance(matches[row.space], Match) for row in rows):
        parts = _parts(rows, value.shape[axis])
        return torch.cat([_part(value.narrow(axis, *span), axis, row, matches, model) for row, span in parts], axis)
    first = matches[rows[0].space]
    assert isinstance(first, Match)
    if rows[0].local:
        return _local(value, rows[0], first, model)
    index, width = positions(rows, matches, model, value.shape[axis])
    index = index.to(value.device)
    if len(index) == width and torch.equal(index.sort()[0], torch.arange(width, device=index.device)):
        return value.index_select(axis, index.argsort())
    kept = (index >= 0).nonzero().flatten()
    shape = [width if i == axis else n for i, n in enumerate(value.shape)]
    return value.new_zeros(shape).index_add_(axis, index[kept], value.index_select(axis, kept))


def members(rows: Sequence[Row], matches: Matches, model: int, length: int, models: int) -> Tensor:
    """How many of a model's units each index of a merged axis is the mean of, `(merged length,)`.

    A merged head has one member in all, so each model counts as a share of it. So it does of a unit of a dense match,
    whose merge matrix holds the mean over the models.

    Args:
        rows: All rows of the table for this axis that write or carry a space.
        matches: Space -> match, for the spaces of all rows.
        model: The model's number in the matches.
        length: Length of the axis before the merge.
        models: Number of models.
    """
    pieces = []
    for row, (_, size) in _parts(_own(rows, matches, model), length):
        match = None if row is None else matches[row.space]
        if row is not None and not isinstance(match, Match):
            width = row.before * matches[row.space].width * row.after
            pieces.append(torch.full((width,), 1 / models, dtype=torch.float64))
        else:
            pieces.append(_part(torch.ones(size, dtype=torch.float64), 0, row, matches, model))
    return torch.cat(pieces)


def _own(rows: Sequence[Row], matches: Matches, model: int) -> list[Row]:
    """The rows of an axis in one of the models, whose spaces may have other sizes than those of the binding."""
    return list(fitted(rows, lambda space: matches[space].sizes[model]).values())


def _parts(rows: Sequence[Row], length: int) -> Iterator[tuple[Row | None, tuple[int, int]]]:
    """An axis divided into what each row covers and what is fixed in between, each with its start and length."""
    done = 0
    for row in rows:
        if row.offset > done:
            yield None, (done, row.offset - done)
        yield row, (row.offset, row.length)
        done = row.offset + row.length
    if done < length:
        yield None, (done, length - done)


def _part(value: Tensor, axis: int, row: Row | None, matches: Matches, model: int) -> Tensor:
    """Merge the part of an axis that one row covers; without a row it is fixed."""
    if row is None:
        return value
    match = matches[row.space]
    if isinstance(match, Match):
        return along(value, axis, [replace(row, offset=0)], matches, model)
    assert not row.local  # groups move as a whole
    if isinstance(match, HeadMatch):
        return match.applied(value, axis, row, model)
    maps = match.unmerge_of(model).T if row.role == "read" else match.merge_of(model)
    shape = (*value.shape[:axis], row.before, maps.shape[1], row.after, *value.shape[axis + 1 :])
    out: Tensor = torch.tensordot(maps.to(value), value.reshape(shape), dims=([1], [axis + 1])).movedim(0, axis + 1)
    return out.flatten(axis, axis + 2)


def positions(rows: Sequence[Row], matches: Matches, model: int, length: int) -> tuple[Tensor, int]:
    """The merged position of every index of an axis, and the merged length of the axis.

    Args:
        rows: All rows of the table for this axis; what they do not cover is fixed and keeps its order.
        matches: Space -> match, for the spaces of all rows.
        model: The model's number in the matches.
        length: Length of the axis.

    Returns:
        Positions, `(length,)`, negative for dropped units; and the merged length.
    """
    pieces = []
    width = 0  # merged positions so far
    done = 0  # indices so far
    for row in _own(rows, matches, model):
        pieces.append(torch.arange(width, width + row.offset - done))
        width += row.offset - done
        match = matches[row.space]
        assert isinstance(match, Match)  # the units of others have no positions
        labels = match.of(model)  # (size,)
        index = (torch.arange(row.before)[:, None] * match.width + labels) * row.after
        index = (index[..., None] + torch.arange(row.after)).masked_fill((labels < 0)[None, :, None], -1 - width)
        pieces.append(width + index.flatten())
        width += row.before * match.width * row.after
        done = row.offset + row.length
    rest = length - done
    return torch.cat([*pieces, torch.arange(width, width + rest)]), width + rest


def _local(value: Tensor, row: Row, match: Match, model: int) -> Tensor:
    """Merge the input axis of a grouped convolution, whose index counts inside the group of the output row.

    Matches of grouped spaces move whole groups. So a column stays in the group of its row, and only its index inside
    the group changes.
    """
    labels = match.of(model).view(-1, row.length).to(value.device)  # (groups, in / groups)
    width = match.width // len(labels)  # merged units of a group
    labels = labels.repeat_interleave(value.shape[0] // len(labels), 0)  # (out, in / groups)
    labels = labels.view(*labels.shape, *[1] * (value.ndim - 2))
    index = (labels % width).expand_as(value)
    shape = (value.shape[0], width, *value.shape[2:])
    return value.new_zeros(shape).scatter_add_(1, index, value * (labels >= 0))  # dropped units are not read

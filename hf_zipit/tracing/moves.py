"""How units travel through data movement and element-wise ops: what is done to the value is done to its label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hf_zipit.tracing.facts import NOBODY, Facts, Label, compress, constant, varying

Outputs = list[list[Label]]  # the labels of each output


class NoRule(Exception):
    """The op, or this use of it, is not understood: its inputs are frozen."""


@dataclass(frozen=True)
class Op:
    """One call of an aten op; `weights` gives the name of a parameter and `local` notes a grouped convolution."""

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    grouped: Callable[[Tensor, int, Label | None], bool]

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [t for t in tree_flatten((self.args, self.kwargs))[0] if isinstance(t, Tensor)]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """A positional argument that may have been given by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


def keep(facts: Facts, op: Op) -> Outputs:
    """Copies, casts, views of everything; softmax and the like when nothing else varies."""
    return [facts.of(op.args[0])] + [[] for _ in op.outputs[1:]]


def move(facts: Facts, op: Op) -> Outputs:
    """Data movement: do to the label what is done to the value."""
    value = op.args[0]
    if any(facts.of(t) for t in op.tensors() if t is not value):
        raise NoRule
    found: Outputs = [[] for _ in op.outputs]
    for label in facts.of(value):
        full = label.expand(value.shape)
        if op.name in ("view", "_unsafe_view", "reshape"):
            moved: Any = full.reshape(op.args[1])
        else:
            moved = op.function(full, *op.args[1:], **op.kwargs)
        for place, part in enumerate(moved if isinstance(moved, list | tuple) else [moved]):
            found[place].append(compress(part))
    return [[x for x in labels if varying(x)] for labels in found]


def pad(facts: Facts, op: Op) -> Outputs:
    """Padding along units adds places of equal value, which are free; along other axes it changes nothing."""
    value, widths = op.args[0], list(op.args[1])
    found = []
    for label in facts.of(value):
        mine = [w if label.shape[value.ndim - 1 - i // 2] > 1 else 0 for i, w in enumerate(widths)]
        padded = torch.constant_pad_nd(label, mine, -1)
        padded[padded < 0] = facts.new(int((padded < 0).sum()))
        found.append(padded)
    return [found]


def strided(facts: Facts, op: Op) -> Outputs:
    """A view by strides: the label is laid out in memory as the value is."""
    value, size, stride = op.args[:3]
    offset = op.argument(3, "storage_offset") or 0
    found = []
    for label in facts.of(value):
        laid = torch.empty_strided(value.shape, value.stride(), dtype=label.dtype)
        laid.copy_(label.expand(value.shape))
        found.append(compress(laid.as_strided(size, stride, max(0, offset - value.storage_offset())).clone()))
    return [[x for x in found if varying(x)]]


def pointwise(facts: Facts, op: Op) -> Outputs:
    """Activations, sums, products, masks."""
    out = op.outputs[0]
    return [facts.pointwise([(t, facts.of(t)) for t in op.tensors()], out.ndim)] + [[] for _ in op.outputs[1:]]


def copy(facts: Facts, op: Op) -> Outputs:
    """`target.copy_(source)`: the source's units, broadcast."""
    return [facts.pointwise([(op.args[1], facts.of(op.args[1]))], op.args[0].ndim)]


def cat(facts: Facts, op: Op) -> Outputs:
    """Units that are joined end to end stay themselves; along any other axis the pieces share their units."""
    pieces = [t for t in op.args[0] if t.numel()]
    axis = op.argument(1, "dim", 0) % op.outputs[0].ndim
    along = [facts.merge(x for x in facts.of(t) if axis in varying(x)) for t in pieces]
    across = [(t, [x for x in facts.of(t) if axis not in varying(x)]) for t in pieces]
    labels = _across(facts, across, axis)
    if any(along):
        dims = {d for found in along for x in found for d in varying(x)}
        joined = []
        for piece, found in zip(pieces, along, strict=True):
            shape = [size if d in dims else 1 for d, size in enumerate(piece.shape)]
            shape[axis] = piece.shape[axis]
            joined.append((found[0] if found else _blank(facts, piece, axis)).expand(shape))
        labels.append(torch.cat(joined, axis))
    return [facts.merge(labels)]


def _blank(facts: Facts, piece: Tensor, axis: int) -> Label:
    """The label of a piece without units: free where all its values are equal, otherwise immovable."""
    units = facts.new(piece.shape[axis]) if constant(piece, axis) else torch.full((piece.shape[axis],), NOBODY)
    return units.view([-1 if d == axis else 1 for d in range(piece.ndim)])


def stack(facts: Facts, op: Op) -> Outputs:
    """The pieces share their units."""
    axis = op.argument(1, "dim", 0) % op.outputs[0].ndim
    pieces = [(t.unsqueeze(axis), [x.unsqueeze(axis) for x in facts.of(t)]) for t in op.args[0]]
    return [_across(facts, pieces, axis)]


def _across(facts: Facts, pieces: Sequence[tuple[Tensor, list[Label]]], axis: int) -> list[Label]:
    """Labels of joined pieces that do not vary along the joined axis."""
    turned = [(t.movedim(axis, 0), [x.movedim(axis, 0) for x in labels]) for t, labels in pieces]
    return [x.movedim(0, axis) for x in facts.pointwise(turned, pieces[0][0].ndim)]


def embedding(facts: Facts, op: Op) -> Outputs:
    """Rows are picked by the label too."""
    weight, index = op.args[:2]
    found = [compress(label.expand(weight.shape)[index]) for label in facts.of(weight)]
    return [[x for x in found if varying(x)]]

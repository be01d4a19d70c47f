"""Rules for data movement, which applies to labels as to values, and for element-wise ops."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from hf_zipit.tracing.facts import NOBODY, Facts, Label, compress, constant, varying

Outputs = list[list[Label]]  # the labels of each output


class NoRule(Exception):
    """There is no rule for an op, or for this use of it: its inputs become fixed."""


@dataclass(frozen=True)
class Op:
    """One call of an aten op.

    Attributes:
        name: Name without namespace and without the underscore of in-place ops.
        function: The op.
        args: Positional arguments.
        kwargs: Keyword arguments.
        outputs: The tensors it returned.
        grouped: Records a grouped convolution, given its weight, number of groups and input channels.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    grouped: Callable[[Tensor, int, Label | None], bool]

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [t for t in tree_flatten((self.args, self.kwargs))[0] if isinstance(t, Tensor)]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument that may have been given by position or by name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)


def keep(facts: Facts, op: Op) -> Outputs:
    """Copies and casts: the output has the labels of the input."""
    return [facts.of(op.args[0])] + [[] for _ in op.outputs[1:]]


def move(facts: Facts, op: Op) -> Outputs:
    """Data movement: apply the op to the label as well."""
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
        for number, part in enumerate(moved if isinstance(moved, list | tuple) else [moved]):
            found[number].append(compress(part))
    return [_several(facts, labels) for labels in found]


def _several(facts: Facts, labels: list[Label]) -> list[Label]:
    """The labels that vary. A single unit that was picked out is fixed: it is used unlike the others of its axis."""
    for label in labels:
        if not varying(label):
            facts.freeze(label)
    return [label for label in labels if varying(label)]


def pad(facts: Facts, op: Op) -> Outputs:
    """Padding adds new units along an axis with units; they are free, as their values are equal."""
    value = op.args[0]
    widths = list(op.args[1])
    found = []
    for label in facts.of(value):
        mine = [w if label.shape[value.ndim - 1 - i // 2] > 1 else 0 for i, w in enumerate(widths)]
        padded = torch.constant_pad_nd(label, mine, -1)
        padded[padded < 0] = facts.new(int((padded < 0).sum()))
        found.append(padded)
    return [found]


def strided(facts: Facts, op: Op) -> Outputs:
    """A view by strides: lay the label out in memory like the value, and take the same view."""
    value, size, stride = op.args[:3]
    offset = op.argument(3, "storage_offset") or 0
    found = []
    for label in facts.of(value):
        laid = torch.empty_strided(value.shape, value.stride(), dtype=label.dtype)
        laid.copy_(label.expand(value.shape))
        found.append(compress(laid.as_strided(size, stride, max(0, offset - value.storage_offset())).clone()))
    return [_several(facts, found)]


def pointwise(facts: Facts, op: Op) -> Outputs:
    """Element-wise ops: activations, sums, products, masks."""
    out = op.outputs[0]
    return [facts.pointwise([(t, facts.of(t)) for t in op.tensors()], out.ndim)] + [[] for _ in op.outputs[1:]]


def copy(facts: Facts, op: Op) -> Outputs:
    """`target.copy_(source)`: the target gets the labels of the source."""
    return [facts.pointwise([(op.args[1], facts.of(op.args[1]))], op.args[0].ndim)]


def cat(facts: Facts, op: Op) -> Outputs:
    """Concatenation: along its axis, units follow each other; along other axes the pieces share their units."""
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
    """The label of a piece without units: free units if all its values are equal, otherwise fixed ones."""
    units = facts.new(piece.shape[axis]) if constant(piece, axis) else torch.full((piece.shape[axis],), NOBODY)
    return units.view([-1 if d == axis else 1 for d in range(piece.ndim)])


def stack(facts: Facts, op: Op) -> Outputs:
    """Stacking: the pieces share their units."""
    axis = op.argument(1, "dim", 0) % op.outputs[0].ndim
    pieces = [(t.unsqueeze(axis), [x.unsqueeze(axis) for x in facts.of(t)]) for t in op.args[0]]
    return [_across(facts, pieces, axis)]


def _across(facts: Facts, pieces: Sequence[tuple[Tensor, list[Label]]], axis: int) -> list[Label]:
    """The labels of joined pieces that do not vary along the joined axis."""
    turned = [(t.movedim(axis, 0), [x.movedim(axis, 0) for x in labels]) for t, labels in pieces]
    return [x.movedim(0, axis) for x in facts.pointwise(turned, pieces[0][0].ndim)]


def embedding(facts: Facts, op: Op) -> Outputs:
    """Embedding lookup: pick rows of the label by the same indices."""
    weight, index = op.args[:2]
    return [_several(facts, [compress(label.expand(weight.shape)[index]) for label in facts.of(weight)])]

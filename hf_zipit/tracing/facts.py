"""The facts that a trace collects: which units are equal, which form a group, and which are fixed.

A *unit* is an integer id. A *label* gives the units in a tensor. It is an integer tensor of the same rank, with size 1
along every axis along which the unit does not change. For example, a tensor of shape (1, 12, 197, 64) whose channels
were split into heads has one label of shape (1, 12, 1, 64). A tensor may have several: a weight has one per axis.
"""

import math
from collections.abc import Iterable, MutableMapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Label = Tensor
Operand = tuple[Tensor, Sequence[Label]]  # a value and its labels

NOBODY = 0  # the id of padding, and of entries without a unit in an axis that has units; always fixed


def varying(label: Label) -> frozenset[int]:
    """The axes along which the unit changes."""
    return frozenset(d for d, size in enumerate(label.shape) if size > 1)


def compress(label: Label) -> Label:
    """Reduce every axis along which the unit does not change to size 1.

    >>> compress(torch.arange(3).expand(4, 3)).shape
    torch.Size([1, 3])
    """
    for d, size in enumerate(label.shape):
        if size > 1 and torch.equal(label.narrow(d, 0, 1).expand_as(label), label):
            label = label.narrow(d, 0, 1)
    return label


def align(tensor: Tensor, ndim: int) -> Tensor:
    """Add leading axes, as broadcasting does."""
    return tensor.reshape([1] * (ndim - tensor.ndim) + list(tensor.shape))


def constant(value: Tensor, axis: int) -> bool:
    """Whether a value is the same all along an axis."""
    return bool((value == value.narrow(axis, 0, 1)).all())


class Facts:
    """Collects facts while a model runs.

    Attributes:
        count: Number of unit ids in use.
        where: The op that is running, as the reason for what it fixes.
        labels: Tensor -> its labels.
        equal: Pairs of units that are the same unit, `(2, n)` each.
        inside: Pairs of a unit and a group that it belongs to, `(2, n)` each. A group is a unit too.
        fixed: Units that cannot be permuted, and why.
    """

    def __init__(self) -> None:
        self.count = NOBODY + 1
        self.where = ""
        self.labels: MutableMapping[Tensor, list[Label]] = WeakTensorKeyDictionary()
        self.equal: list[Tensor] = []
        self.inside: list[Tensor] = []
        self.fixed: list[tuple[Tensor, str]] = []

    def new(self, count: int) -> Label:
        """Fresh units, shape `(count,)`."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def of(self, value: object) -> list[Label]:
        """The labels of a tensor."""
        return list(self.labels.get(value, [])) if isinstance(value, Tensor) else []

    def same(self, a: Label, b: Label) -> None:
        """Record that the units of two labels, broadcast together, are pairwise equal."""
        self.equal.append(_pairs(a, b))

    def member(self, units: Label, groups: Label) -> None:
        """Record that each unit belongs to the group at its index; the labels are broadcast together."""
        self.inside.append(_pairs(units, groups))

    def freeze(self, label: Label) -> None:
        """Record that the units are fixed by the op in `where`."""
        self.fixed.append((torch.from_numpy(np.unique(label.numpy())), self.where))

    def merge(self, labels: Iterable[Label]) -> list[Label]:
        """Relate several labels of one tensor, and keep those that no finer label replaces."""
        kept: list[Label] = []
        for label in map(compress, labels):
            dims = varying(label)
            twin = next((k for k in kept if varying(k) == dims), None)
            if twin is not None:
                self.same(label, twin)
            elif dims:
                for other in kept:
                    self._relate(label, other)
                kept.append(label)
        return [k for k in kept if not any(varying(k) < varying(other) for other in kept)]

    def _relate(self, a: Label, b: Label) -> None:
        """Relate two labels that share axes: a coarse one groups a finer one; a partial overlap has common groups."""
        common = varying(a) & varying(b)
        if not common:
            return
        if common == varying(b):
            self.member(a, b)
        elif common == varying(a):
            self.member(b, a)
        else:
            left, right = self.reduce(a, varying(a) - common), self.reduce(b, varying(b) - common)
            if left is not None and right is not None:
                self.same(left, right)

    def reduce(self, label: Label, axes: Iterable[int]) -> Label | None:
        """The label after a symmetric reduction over axes: units that are reduced together become one group."""
        dims = varying(label)
        gone = dims & frozenset(axes)
        if not gone:
            return label
        if gone == dims:
            return None
        kept = [d for d in range(label.ndim) if d not in gone]
        rows = label.permute(*kept, *sorted(gone)).reshape(math.prod(label.shape[d] for d in kept), -1)
        sets, group_of_row = torch.unique(rows.sort(1).values, dim=0, return_inverse=True)  # a group per set of members
        shape = [1 if d in gone else size for d, size in enumerate(label.shape)]
        groups = self.new(len(sets))[group_of_row].reshape(shape)
        self.member(label, groups)
        return compress(groups)

    def pointwise(self, operands: Sequence[Operand], ndim: int) -> list[Label]:
        """The labels of an element-wise result: units at the same index become equal.

        Units are fixed along an axis where another operand has different values but no units, such as position
        embeddings.

        Args:
            operands: The values with their labels.
            ndim: Number of axes of the result.
        """
        aligned = [(align(v, ndim), [align(x, ndim) for x in labels]) for v, labels in operands]
        kept = []
        for label in [x for _, labels in aligned for x in labels]:
            free = True
            for value, labels in aligned:
                covered = frozenset(d for x in labels for d in varying(x))
                bare = [d for d in varying(label) - covered if value.shape[d] > 1 and not constant(value, d)]
                if set(bare) == varying(label):
                    self.freeze(label)
                    free = False
                elif bare:
                    self.pin(label, bare)
            if free:
                kept.append(label)
        return self.merge(kept)

    def pin(self, label: Label, axes: Sequence[int]) -> None:
        """Record that no permutation moves units along these axes: each index there becomes a fixed group."""
        sizes = [size if d in axes else 1 for d, size in enumerate(label.shape)]
        groups = self.new(math.prod(sizes)).reshape(sizes)
        self.freeze(groups)
        self.member(label, groups)

    def contract(self, left: Operand, right: Operand) -> list[Label]:
        """The labels of the matrix product `(..., n, m)` of `(..., n, k)` and `(..., k, m)`."""
        rows = left[0].unsqueeze(-2), [x.unsqueeze(-2) for x in left[1]]  # (..., n, 1, k)
        turned = (right[0], *right[1])
        columns = [x.transpose(-1, -2).unsqueeze(-3) for x in turned]  # (..., 1, m, k)
        ndim = max(rows[0].ndim, columns[0].ndim)
        products = self.pointwise([rows, (columns[0], columns[1:])], ndim)  # (..., n, m, k)
        reduced = (self.reduce(x, [ndim - 1]) for x in products)
        return self.merge(x.squeeze(-1) for x in reduced if x is not None)


def _pairs(a: Label, b: Label) -> Tensor:
    first, second = (x.reshape(-1) for x in np.broadcast_arrays(a.numpy(), b.numpy()))
    apart = first != second
    return torch.from_numpy(np.unique(np.stack([first[apart], second[apart]]), axis=1))

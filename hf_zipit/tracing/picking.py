"""Rules for ops that pick entries by value or by position: maxima, sorting, gathering, sampling from a feature map."""

from torch import Tensor

from hf_zipit.tracing.facts import Facts, Label, varying
from hf_zipit.tracing.moves import NoRule, Op, Outputs


def ranking(facts: Facts, op: Op) -> Outputs:
    """Maxima and sorting along an axis. Units along it become fixed, because the answer is an index of theirs."""
    x = op.args[0]
    axis = op.argument(2 if op.name == "topk" else 1, "dim", -1)
    if not isinstance(axis, int) or (op.name in ("max", "min", "argmax", "argmin") and len(op.args) < 2):
        raise NoRule  # over all axes, or of two tensors
    kept = _crossing(facts, facts.of(x), {axis % x.ndim})
    return [[label if out.ndim == x.ndim else label.squeeze(axis) for label in kept] for out in op.outputs]


def gather(facts: Facts, op: Op) -> Outputs:
    """Gathering along an axis by indices: units along it become fixed, others go with the indices beside them."""
    x, axis, index = op.args[:3]
    kept = _crossing(facts, facts.of(x), {axis % x.ndim})
    return [facts.pointwise([(op.outputs[0], kept), (index, facts.of(index))], x.ndim)]


def sample(facts: Facts, op: Op) -> Outputs:
    """Sampling a feature map (B, C, H, W) at points (B, P, Q, 2): both coordinates of a point stay in their place."""
    x, grid = op.args[:2]
    channels = _crossing(facts, facts.of(x), {2, 3})
    points = []
    for label in facts.of(grid):
        facts.pin(label, [3])
        point = facts.reduce(label, [3])
        points += [] if point is None else [point.movedim(3, 1)]
    maps, places = _spread(x.flatten(2), 2)[..., None], _spread(grid, 3).movedim(3, 1)
    return [facts.pointwise([(maps, channels), (places, points)], 4)]


def _spread(value: Tensor, axis: int) -> Tensor:
    """One number for all entries along an axis, which differs wherever any of them does."""
    out: Tensor = value.double().norm(dim=axis, keepdim=True)
    return out


def _crossing(facts: Facts, labels: list[Label], axes: set[int]) -> list[Label]:
    """The labels that do not vary along some axes; the others become fixed."""
    for label in labels:
        if varying(label) & axes:
            facts.freeze(label)
    return [label for label in labels if not varying(label) & axes]

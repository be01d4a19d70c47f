"""What a refit fits layers to: the parents' outputs, merged as the units are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.specs.spaces import Binding, Row
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import along, members, positions


class Target:
    """The merge of the parents' outputs of one layer.

    Args:
        labels: for each parent `(n,)`, the merged unit of every unit; negative for a unit that was dropped.
        width: the number of merged units, m.
        per_task: whether the images of a task are taught by the parent of that task alone.
    """

    def __init__(self, labels: Sequence[Tensor], width: int, per_task: bool) -> None:
        self.per_task = per_task
        members = [torch.bincount(mine[mine >= 0], minlength=width).double() for mine in labels]
        self.counts = torch.stack(members)  # (N, m)
        self.kept = [(mine >= 0).nonzero().flatten() for mine in labels]
        self.labels = [mine[kept] for mine, kept in zip(labels, self.kept, strict=True)]

    def __call__(self, outputs: Sequence[Tensor], task: Tensor) -> Tensor:
        """What the merged layer should put out: the mean over the members of every merged unit.

        Args:
            outputs: of each parent, `(B, P, n)`.
            task: the task of every image, `(B,)`. With `per_task`, the mean is over the members from the parent of the
                image's task, wherever there are any.

        Returns:
            `(B, P, m)`.
        """
        first = outputs[0]
        counts = self.counts.to(first)
        sums = [
            first.new_zeros(*first.shape[:2], counts.shape[1]).index_add_(
                -1, labels.to(first.device), output.index_select(-1, kept.to(first.device))
            )
            for output, labels, kept in zip(outputs, self.labels, self.kept, strict=True)
        ]
        out = torch.stack(sums).sum(0) / counts.sum(0).clamp(min=1)
        if self.per_task:
            for model, (mine, count) in enumerate(zip(sums, counts, strict=True)):
                here = (task == model)[:, None, None] & (count > 0)
                out = torch.where(here, mine / count.clamp(min=1), out)
        return out


class LinearTarget:
    """The linear map by which the outputs of a layer are merged: by a dense match, or with the heads of all parents.

    Args:
        rows: the units that the layer writes.
        aims: the match that each of their spaces is fitted to.
        counts: how many units each merged output is the mean of, `(m,)`.
        per_task: whether the images of a task are taught by the parent of that task alone. Every output of a layer that
            writes kept heads belongs to one parent, so there the task of an image makes no difference.
    """

    def __init__(self, rows: Sequence[Row], aims: Matches, counts: Tensor, per_task: bool) -> None:
        self.rows = rows
        self.aims = aims
        self.counts = counts.clamp(min=1)
        self.per_task = per_task

    def __call__(self, outputs: Sequence[Tensor], task: Tensor) -> Tensor:
        """What the merged layer should put out, `(B, P, m)`, from the outputs `(B, P, n)` of each parent."""
        counts = self.counts.to(outputs[0])
        given = torch.stack([along(out, 2, self.rows, self.aims, k) / counts for k, out in enumerate(outputs)])
        if not self.per_task:
            return given.sum(0)
        own = (task == torch.arange(len(given), device=task.device)[:, None])[..., None, None]  # (N, B, 1, 1)
        return len(given) * (given * own.to(given)).sum(0)


def trunk_target(
    binding: Binding,
    matches: Matches,
    parameter: str,
    widths: Sequence[int],
    per_task: bool,
) -> Target | LinearTarget:
    """The target of a layer of the trunk: its outputs are merged as the rows of its weight are.

    Args:
        binding: which rows of which parameter belong to which space.
        matches: by space, which merged unit each parent's unit became.
        parameter: the name of the layer's weight.
        widths: the number of outputs that the layer has in each parent. Those of a classifier are concatenated.
        per_task: as for `Target`.
    """
    if parameter in binding.classifier:
        starts = [sum(widths[:k]) for k in range(len(widths))]
        labels = [torch.arange(start, start + width) for start, width in zip(starts, widths, strict=True)]
        return Target(labels, sum(widths), False)
    rows = [row for row in binding.rows([parameter])[parameter] if row.role != "read" and row.axis == 0]
    aims: Matches = {row.space: matches[row.space].aim for row in rows}
    if not all(isinstance(aim, Match) for aim in aims.values()):
        counts = torch.stack([members(rows, aims, k, width, len(widths)) for k, width in enumerate(widths)]).sum(0)
        heads = any(isinstance(aim, HeadMatch) for aim in aims.values())
        return LinearTarget(rows, aims, counts, per_task and not heads)
    placed = [positions(rows, aims, model, width) for model, width in enumerate(widths)]
    return Target([labels for labels, _ in placed], placed[0][1], per_task)


def identity(nets: Sequence[nn.Module], layer: Layer) -> Target:
    """The target of a layer of a head: the mean of the same layer's outputs in one or more networks."""
    width = int(nets[0].get_parameter(f"{layer.maps[0].module}.weight").shape[0])
    return Target([torch.arange(width)] * len(nets), width, False)

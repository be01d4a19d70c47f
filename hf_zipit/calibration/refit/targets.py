"""What a refit aims at: the parents' activations, merged as the units are."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import positions


class Target:
    """The merge of the parents' outputs at one place.

    `index[k] (n,)` says which merged unit each unit of parent k belongs to, negative where it was dropped.
    """

    def __init__(self, index: Sequence[Tensor], width: int, per_task: bool) -> None:
        self.per_task = per_task
        ones = [torch.bincount(labels[labels >= 0], minlength=width).double() for labels in index]
        self.counts = torch.stack(ones)  # (N, m)
        self.kept = [(labels >= 0).nonzero().flatten() for labels in index]
        self.index = [labels[kept] for labels, kept in zip(index, self.kept, strict=True)]

    def __call__(self, sites: Sequence[Tensor], task: Tensor) -> Tensor:
        """The parents' outputs `(B, P, n)` each -> what the merged model should put out, `(B, P, m)`.

        The mean over the units that were merged; `per_task`, on the images of task k the mean over those of parent k
        wherever there are any.
        """
        first = sites[0]
        counts = self.counts.to(first)
        sums = [
            first.new_zeros(*first.shape[:2], counts.shape[1]).index_add_(
                -1, index.to(first.device), site.index_select(-1, kept.to(first.device))
            )
            for site, index, kept in zip(sites, self.index, self.kept, strict=True)
        ]
        out = torch.stack(sums).sum(0) / counts.sum(0).clamp(min=1)
        if self.per_task:
            for model, (mine, count) in enumerate(zip(sums, counts, strict=True)):
                here = (task == model)[:, None, None] & (count > 0)
                out = torch.where(here, mine / count.clamp(min=1), out)
        return out


def trunk_target(
    binding: Binding,
    matches: Mapping[str, Match],
    parameter: str,
    widths: Sequence[int],
    per_task: bool,
) -> Target:
    """The target of a merged layer: its outputs are merged as the rows of its weight are.

    Args:
        parameter: the name of its weight.
        widths: how many outputs the layer has in each parent; those of a classifier are put side by side.
    """
    if parameter in binding.classifier:
        starts = [sum(widths[:k]) for k in range(len(widths))]
        index = [torch.arange(start, start + width) for start, width in zip(starts, widths, strict=True)]
        return Target(index, sum(widths), False)
    rows = [row for row in binding.rows([parameter])[parameter] if row.role != "read" and row.axis == 0]
    aims = {row.space: matches[row.space].aim for row in rows}
    placed = [positions(rows, aims, model, width) for model, width in enumerate(widths)]
    return Target([index for index, _ in placed], placed[0][1], per_task)


def identity(nets: Sequence[nn.Module], layer: Layer) -> Target:
    """The target of a head's layer: what its parent puts out there, or the mean over several networks."""
    width = int(nets[0].get_parameter(f"{layer.parts[0].module}.weight").shape[0])
    return Target([torch.arange(width)] * len(nets), width, False)

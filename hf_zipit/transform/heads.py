"""A match of attention heads: all heads of all models side by side, each mapped to fewer units."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zipit.specs.attention import Part, part_of
from hf_zipit.specs.spaces import Row
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import Match


@dataclass(frozen=True, eq=False)
class HeadMatch:
    """All heads of all models, each with r units instead of u.

    Merged head `k * H + h` is head h of model k. No head is merged with another one, so a merge sums what the models
    write, and divides by nothing.

    Attributes:
        sizes: number of units of each model, `(H * u, ...)`.
        heads: number of heads of one model, H.
        writes: for each part that writes the space, the map of every head, `(N, H, r, u)`. A single map is that of all
            parameters that write the space.
        reads: how a layer that reads the space gets the u units of a head back, `(N, H, u, r)`; `None` for queries and
            keys, which nothing reads.
        score: share of the variance of the logits, or of what the heads write, that the units keep.

    >>> halves = torch.tensor([[1.0, 0.0]]).expand(2, 3, 1, 2)
    >>> HeadMatch((6, 6), 3, {("attn.q", 0): halves}).width
    6
    """

    sizes: tuple[int, ...]
    heads: int
    writes: Mapping[Part, Tensor]
    reads: Tensor | None = None
    score: float = 1.0

    @property
    def width(self) -> int:
        """Number of merged units, N * H * r."""
        models, heads, units, _ = next(iter(self.writes.values())).shape
        return models * heads * units

    def applied(self, value: Tensor, axis: int, row: Row, model: int) -> Tensor:
        """Map one model's units along an axis to the merged units; those of the other models' heads are 0.

        Args:
            value: what has the units.
            axis: that they cover.
            row: how they lie there. If it reads them, the axis is that of a layer that reads the merged units instead.
            model: whose they are.
        """
        maps = self._maps(row, model).to(value)  # (H, r, u)
        heads, _, size = maps.shape
        before, after = value.shape[:axis], value.shape[axis + 1 :]
        mine = value.reshape(math.prod(before) * row.before, heads, size, row.after * math.prod(after))
        mapped = torch.einsum("hru,bhua->bhra", maps, mine)
        out = mapped.new_zeros(len(mapped), self.merged_heads, *mapped.shape[2:])
        out[:, model * heads : (model + 1) * heads] = mapped
        return out.reshape(*before, row.before * self.width * row.after, *after)

    def _maps(self, row: Row, model: int) -> Tensor:
        """How one model's heads are mapped along the axis of a row, `(H, r, u)`."""
        if row.role == "read":
            assert self.reads is not None  # nothing reads queries and keys
            return self.reads[model].mT
        only = next(iter(self.writes.values())) if len(self.writes) == 1 else None
        return (self.writes[part_of(row)] if only is None else only)[model]

    @property
    def aim(self) -> "HeadMatch":
        """The match that defines the refit targets: this one."""
        return self

    def composition(self) -> dict[str, int]:
        """Counts of merged units by their members, as for other matches: each has units of one head alone."""
        return {"shared": 0, "within": 0, "alone": self.width}

    @property
    def merged_heads(self) -> int:
        """The number of merged heads, N * H."""
        return len(self.sizes) * self.heads


Matches = Mapping[str, Match | DenseMatch | HeadMatch]  # by space


def deviations(matches: Matches) -> Matches:
    """The matches that merge standard deviations of units: that of a merged unit is the mean of its members'."""
    return {name: match.deviations if isinstance(match, DenseMatch) else match for name, match in matches.items()}

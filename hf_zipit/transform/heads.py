"""A match of attention heads: all heads of all models side by side, each mapped to fewer units."""

from collections.abc import Mapping
from dataclasses import dataclass

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

    def merge(self, row: Row, model: int) -> Tensor:
        """The map from one model's units to the merged units, for a row that writes them, `(width, H * u)`."""
        only = next(iter(self.writes.values())) if len(self.writes) == 1 else None
        maps = self.writes[part_of(row)] if only is None else only
        return self._placed(maps[model], model)

    def unmerge(self, model: int) -> Tensor:
        """The map from the merged units to one model's units, for a row that reads them, `(H * u, width)`."""
        assert self.reads is not None  # nothing reads queries and keys
        return self._placed(self.reads[model].mT, model).T

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

    def _placed(self, maps: Tensor, model: int) -> Tensor:
        """The maps of one model's heads `(H, r, u)` as one matrix, `(width, H * u)`."""
        heads, units, size = maps.shape
        out = maps.new_zeros(self.width, heads * size)
        for head, one in enumerate(maps):
            row = (model * heads + head) * units
            out[row : row + units, head * size : (head + 1) * size] = one
        return out


Matches = Mapping[str, Match | DenseMatch | HeadMatch]  # by space


def deviations(matches: Matches) -> Matches:
    """The matches that merge standard deviations of units: that of a merged unit is the mean of its members'."""
    return {name: match.deviations if isinstance(match, DenseMatch) else match for name, match in matches.items()}

"""A dense match: every merged unit is a linear combination of the units of all models."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DenseMatch:
    """Merged units as linear combinations of the units of all models, and these as combinations of merged units.

    The algebra is that of `Match`: a layer W becomes `M W U`. Behind a nonlinearity f this is an approximation, as
    `M f(x)` is not `f(M x)` unless every unit is a copy of one other.

    Attributes:
        merge: The merge matrix `M`, `(m, n)`; the columns of model 0 come first. It holds the mean over the models.
        unmerge: The unmerge matrix `U`, `(n, m)`.
        spread: What the deviations of the units say of those of the merged units, `(m, n)`; rows of non-negative
            numbers with sum 1.
        sizes: Number of units of each model; their sum is `n`.
        score: Mean similarity of the units that were merged, as the method defines it.

    >>> halves = torch.tensor([[0.5, 0.5]])
    >>> DenseMatch(halves, torch.ones(2, 1), halves, (1, 1)).merge_of(1)
    tensor([[0.5000]])
    """

    merge: Tensor
    unmerge: Tensor
    spread: Tensor
    sizes: tuple[int, ...]
    score: float = 0.0

    @property
    def width(self) -> int:
        """Number of merged units, `m`."""
        return len(self.merge)

    @property
    def aim(self) -> "DenseMatch":
        """The match that defines the refit targets: this one."""
        return self

    @property
    def deviations(self) -> "DenseMatch":
        """The match that merges standard deviations of units, which have no sign."""
        return replace(self, merge=self.spread)

    def merge_of(self, model: int) -> Tensor:
        """The columns of `M` of one model, `(m, sizes[model])`."""
        return torch.split(self.merge, list(self.sizes), 1)[model]

    def unmerge_of(self, model: int) -> Tensor:
        """The rows of `U` of one model, `(sizes[model], m)`."""
        return torch.split(self.unmerge, list(self.sizes))[model]

    def alone(self, model: int, units: Tensor | None = None) -> "DenseMatch":
        """The match of one model alone, or of some of its units, `(k,)`."""
        chosen = torch.arange(self.sizes[model]) if units is None else units.to(self.merge.device)
        start = sum(self.sizes[:model])
        merge, spread = (value[:, start + chosen] for value in (self.merge, self.spread))
        return DenseMatch(merge, self.unmerge[start + chosen], spread, (len(chosen),), self.score)

    def composition(self) -> dict[str, int]:
        """Counts of merged units by their members, as for other matches: each has members in all models."""
        return {"shared": self.width, "within": 0, "alone": 0}

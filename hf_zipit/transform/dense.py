"""A dense match: every merged unit is a linear combination of the units of all models."""

from collections.abc import Sequence
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


def check_dense_match(found: object, sizes: Sequence[int]) -> str:
    """What is wrong with what a matching function returned, as the end of a sentence; empty if nothing is.

    Args:
        found: What it returned.
        sizes: Number of units of each model.

    >>> halves = torch.tensor([[0.5, 0.5]])
    >>> check_dense_match(DenseMatch(halves, halves, halves, (1, 1)), [1, 1])
    'an unmerge matrix of shape (1, 2), not (2, 1)'
    """
    if not isinstance(found, DenseMatch):
        return f"{type(found).__name__}, not a DenseMatch"
    if tuple(found.sizes) != tuple(sizes):
        return f"a match of {list(found.sizes)} units, but the models have {list(sizes)}"
    shape = (max(sizes), sum(sizes))
    wanted = {
        "a merge": (found.merge, shape),
        "a spread": (found.spread, shape),
        "an unmerge": (found.unmerge, shape[::-1]),
    }
    for name, (matrix, right) in wanted.items():
        if matrix.shape != right:
            return f"{name} matrix of shape {tuple(matrix.shape)}, not {right}"
        if not bool(matrix.isfinite().all()):
            return f"{name} matrix with values that are not finite"
    return ""

"""The plan of a merge: where the trunk ends, how wide it is, and how the heads read it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding


@dataclass(frozen=True)
class Plan:
    """Which steps are merged, and to what width.

    Attributes:
        binding: the spec, bound to the models.
        depth: number of merged steps; 0 if the models are not a chain of steps.
        cut: the cut as the user named it; `None` merges as much as possible.
        widths: number of merged units, for the spaces where it differs from one model's.
        kept: attention layers, by group axis, of which the heads of all models are kept, and the number of units of
            each head.
        attributes: path of a merged module -> attribute -> value, where the number of heads changes it.
    """

    binding: Binding
    depth: int
    cut: str | None
    widths: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether the merge is a single network, whose classifier has the classes of all tasks."""
        return not self.depth

    @property
    def trunk(self) -> tuple[str, ...]:
        """The merged steps."""
        return self.binding.steps[: self.depth]

    @property
    def head(self) -> tuple[str, ...]:
        """The steps after the cut, of which each task keeps its own."""
        return self.binding.steps[self.depth :]

    @property
    def crossing(self) -> str:
        """The space of the tensor that the trunk passes to the heads."""
        space = self.binding.after[self.binding.steps[self.depth - 1]]
        assert space is not None  # resolve_cut only gives legal cuts
        return space

    @property
    def gathers(self) -> bool:
        """Whether each head gathers its own model's units instead of reading merged units with folded weights.

        Weights are folded in full merges only, and only if the head's parameters do nothing but read the space.
        """
        mine = [row for row in self.binding.table if row.space == self.crossing]
        inside = set(self.binding.under(self.head, [row.parameter for row in mine]))
        return self.cut is not None or any(row.role != "read" for row in mine if row.parameter in inside)

    @property
    def ratios(self) -> dict[str, float]:
        """Merged width over one model's width, for the spaces where they differ."""
        return {name: width / self.binding.spaces[name].size for name, width in self.widths.items()}

    def touched(self, names: Iterable[str]) -> list[str]:
        """The names, among those of a state dict, of the merged parameters."""
        if self.whole:
            return [name for name in names if name not in self.binding.classifier]
        return self.binding.under(self.trunk, names)

    def spaces(self, names: Iterable[str]) -> set[str]:
        """The spaces of the merged parameters, given the names in a state dict."""
        rows = self.binding.rows(self.touched(names)).values()
        return {row.space for mine in rows for row in mine}


def gathered(labels: Tensor, width: int) -> Tensor:
    """The index of the merged unit that each unit of a model reads, `(n,)`.

    Args:
        labels: the merged unit of each unit of the model, `(n,)`; negative for a dropped unit.
        width: number of merged units. A dropped unit `i` reads merged unit `i % width`.
    """
    return torch.where(labels < 0, torch.arange(len(labels)) % width, labels)

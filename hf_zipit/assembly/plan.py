"""The merged model from its parts: which steps are trunk and head, its config, its state, and the module itself."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zipit.specs.spaces import Binding


@dataclass(frozen=True)
class Plan:
    """Where the trunk ends, and how the heads read it."""

    binding: Binding
    depth: int
    cut: str | None

    @property
    def whole(self) -> bool:
        """No chain: one network, whose classifier gets the classes of all tasks."""
        return not self.depth

    def touched(self, names: Iterable[str]) -> list[str]:
        """Those of the state dict's names that are merged."""
        if self.whole:
            return [name for name in names if name not in self.binding.classifier]
        return self.binding.under(self.trunk, names)

    @property
    def trunk(self) -> tuple[str, ...]:
        """The merged steps."""
        return self.binding.steps[: self.depth]

    @property
    def head(self) -> tuple[str, ...]:
        """The steps that every task keeps for itself."""
        return self.binding.steps[self.depth :]

    @property
    def crossing(self) -> str:
        """The space of the one tensor that is alive between trunk and heads."""
        space = self.binding.after[self.binding.steps[self.depth - 1]]
        assert space is not None  # resolve_cut only gives legal cuts
        return space

    @property
    def gathers(self) -> bool:
        """Whether each head gathers its own units, instead of reading merged ones with folded weights.

        Folding is only for full merges, and only right where the head does nothing with the space but read it.
        """
        mine = [row for row in self.binding.table if row.space == self.crossing]
        inside = set(self.binding.under(self.head, [row.parameter for row in mine]))
        return self.cut is not None or any(row.role != "read" for row in mine if row.parameter in inside)


def places(labels: Tensor, width: int) -> Tensor:
    """The merged unit that each unit of a model reads; a dropped one reads the unit at its place."""
    return torch.where(labels < 0, torch.arange(len(labels)) % width, labels)

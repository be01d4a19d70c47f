"""Statistics of the models' activations, per space and task, in one pass over the data.

All models see the same batch. Nothing is gathered: each process sums its own batches and one reduction follows.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.spaces import FeatureSpace, Probe

POSITIONS = 256  # of a larger feature map an even lattice of at most this many positions per image is read


class Reader:
    """Reads the probes of one model during a pass; leaves no hook behind."""

    def __init__(self, model: nn.Module, spaces: Mapping[str, FeatureSpace], positions: int | None) -> None:
        self.model, self.spaces, self.positions = model, spaces, positions
        self.features: dict[str, list[Tensor]] = {name: [] for name in spaces}

    def __enter__(self) -> "Reader":
        self.handles = [self._attach(name, probe) for name, space in self.spaces.items() for probe in space.probes]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _attach(self, name: str, probe: Probe) -> torch.utils.hooks.RemovableHandle:
        module = self.model.get_submodule(probe.module)
        if probe.side == "in":
            return module.register_forward_pre_hook(lambda _, args: self._keep(name, probe, args[0]))
        return module.register_forward_hook(lambda _, __, out: self._keep(name, probe, out))

    def _keep(self, name: str, probe: Probe, value: Tensor) -> None:
        self.features[name].append(samples(units(value, probe, self.spaces[name].size), self.positions))

    def pop(self, name: str) -> list[Tensor]:
        """What was read of a space since the last time, one `(B, P, size)` for each probe."""
        out = self.features[name]
        self.features[name] = []
        return out


def units(value: Tensor, probe: Probe, size: int) -> Tensor:
    """A probed tensor with the units of the probed space on axis 1.

    Raises:
        SpecError: it is too narrow for them.
    """
    if probe.last or value.ndim == 3:
        value = value.movedim(-1, 1)
    if value.shape[1] < probe.start + size:
        raise SpecError(f"probe {probe.module}.{probe.side} shows {value.shape[1]} units, not {probe.start + size}")
    return value.narrow(1, probe.start, size) if probe.start or value.shape[1] > size else value


def samples(value: Tensor, positions: int | None = None) -> Tensor:
    """Activations with units on axis 1 -> (B, P, units), a copy; large maps are read on an even lattice."""
    if value.ndim == 4 and positions is not None:
        height, width = value.shape[2:]
        stride = 1
        while -(-height // stride) * -(-width // stride) > positions:
            stride += 1
        value = value[:, :, (stride - 1) // 2 :: stride, (stride - 1) // 2 :: stride]
    return value.flatten(2).transpose(1, 2).clone() if value.ndim > 2 else value[:, None].clone()

"""Reading the probes of a model during a pass: activations of every space, as samples."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_zipit.errors import SpecError
from hf_zipit.specs.spaces import FeatureSpace, Probe
from hf_zipit.statistics.lattice import lattice

POSITIONS = 256  # a feature map with more positions is read on an even lattice of at most so many per image
TOKENS = 64  # of a longer sequence, so many tokens are read,
SAMPLES = 8  # or as many as give so many samples for each unit
GOLDEN = (5**0.5 - 1) / 2  # by which the place of a token in its stretch moves on


class Reader:
    """Reads the probes of one model. Its hooks are removed at the end of the `with` block.

    Args:
        model: the model that runs in the block.
        spaces: the spaces to read, by name.
        positions: upper limit on the positions of a feature map that are read per image; `None` reads all.
        tokens: the same for sequences, by space; by default all tokens are read.
    """

    def __init__(
        self,
        model: nn.Module,
        spaces: Mapping[str, FeatureSpace],
        positions: int | None,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        self.model = model
        self.spaces = spaces
        self.positions = positions
        self.tokens = tokens or {}
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
        value = units(value, probe, self.spaces[name].size)
        self.features[name].append(samples(value, self.positions, self.tokens.get(name)))

    def pop(self, name: str) -> list[Tensor]:
        """What was read of a space since the last call, one `(B, P, size)` per probe."""
        out = self.features[name]
        self.features[name] = []
        return out


def units(value: Tensor, probe: Probe, size: int) -> Tensor:
    """A probed tensor with the units of the probed space on axis 1.

    Args:
        value: `(B, units)`, tokens `(B, P, units)`, or a feature map, `(B, units, H, W)` or with units last.
        probe: where the tensor was read, and where the space begins on its axis of units.
        size: the number of units of the space.

    Raises:
        SpecError: the tensor has too few units.
    """
    if probe.last or value.ndim == 3:
        value = value.movedim(-1, 1)
    if value.shape[1] < probe.start + size:
        raise SpecError(f"probe {probe.module}.{probe.side} shows {value.shape[1]} units, not {probe.start + size}")
    return value.narrow(1, probe.start, size) if probe.start or value.shape[1] > size else value


def samples(value: Tensor, positions: int | None = None, tokens: int | None = None) -> Tensor:
    """Activations with units on axis 1 -> a copy of shape `(B, P, units)`.

    Args:
        value: `(B, units)`, a sequence `(B, units, P)`, or a feature map `(B, units, H, W)`.
        positions: a feature map with more positions is read on an even lattice.
        tokens: of a longer sequence, only so many tokens are read; see `spread`.

    >>> samples(torch.zeros(2, 5, 197), tokens=64).shape
    torch.Size([2, 64, 5])
    """
    if value.ndim == 4 and positions is not None:
        rows, cols = lattice(value.shape[2:], positions)
        value = value[:, :, rows, cols]
    if value.ndim == 3 and tokens is not None and value.shape[2] > tokens:
        value = value[:, :, spread(value.shape[2], tokens).to(value.device)]
    return value.flatten(2).transpose(1, 2).clone() if value.ndim > 2 else value[:, None].clone()


def spread(length: int, count: int) -> Tensor:
    """Some of the positions of a sequence: the first, and one from each of equal stretches.

    Where it lies in its stretch differs from one to the next, by the golden ratio. With equal steps, tokens of a square
    map would all be of a few of its columns.

    >>> spread(100, 5)
    tensor([ 0, 32, 44, 77, 89])
    """
    places = {int((i + i * GOLDEN % 1) * length / count) for i in range(count)}
    return torch.tensor(sorted(places))


def tokens_read(units: int, images: int) -> int:
    """Upper limit on the tokens of an image that are read, for a space of so many units in all models together.

    Tokens of one image are alike, so a few of them, of many images, say as much as all.
    """
    return max(TOKENS, -(-SAMPLES * units // max(images, 1)))

"""What head maps are computed from: second moments of queries, keys and head outputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_zipit.specs.attention import Attention, Part
from hf_zipit.statistics.moments import Moments

Read = Mapping[str, Tensor]  # group axis -> which tokens anything later reads, `(P,)`; all if it has no entry


@dataclass
class HeadStatistics:
    """The moments of the heads of one attention layer, of all models.

    Attributes:
        queries: sum over the samples of `q q'`, `(N, H, u, u)`, float64.
        keys: the same of the keys, centred over the tokens that one softmax runs over, `(N, H, u, u)`.
        counts: the number of samples of queries and of keys, `(2,)`.
        outputs: moments of the outputs of all heads of all models side by side, `N * H * u` units.
        key_parts: which parts of the layer put out keys.
    """

    queries: Tensor
    keys: Tensor
    counts: Tensor
    outputs: Moments
    key_parts: frozenset[Part]

    @classmethod
    def empty(cls, layer: Attention, models: int, device: torch.device, key_parts: frozenset[Part]) -> "HeadStatistics":
        """The moments of no samples."""
        shape = (models, layer.heads, layer.units, layer.units)
        zeros = torch.zeros(shape, dtype=torch.float64, device=device)
        counts = torch.zeros(2, dtype=torch.float64, device=device)
        return cls(zeros, zeros.clone(), counts, Moments.empty(models * layer.values.size, device), key_parts)

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the moments of this process by those of all processes."""
        if accelerator.num_processes > 1:
            self.queries, self.keys, self.counts = (
                accelerator.reduce(value, "sum") for value in (self.queries, self.keys, self.counts)
            )
        self.outputs.reduce(accelerator)


class _Seen:
    """What the parts of one layer of one model put out during a forward pass."""

    def __init__(self, layer: Attention) -> None:
        self.layer = layer
        self.values: dict[str, Tensor] = {}

    def keep(self, name: str, start: int) -> Callable[..., None]:
        """A hook on the module that writes a part."""
        return lambda _, __, out: self.values.update({name: self._heads(out, start)})

    def keep_input(self) -> Callable[..., None]:
        """A hook on the layer that reads the outputs of the heads."""
        return lambda _, args: self.values.update(outputs=args[0].flatten(1, -2).clone())

    def _heads(self, out: Tensor, start: int) -> Tensor:
        """A copy of `(B, P, units)` as `(B, P, H, u)`."""
        mine = out[..., start : start + self.layer.values.size]
        return mine.flatten(1, -2).clone().reshape(len(out), -1, self.layer.heads, self.layer.units)

    def pop(self) -> dict[str, Tensor]:
        """What was seen since the last call, in float64: value maps are sensitive to rounding."""
        seen = {name: value.double() for name, value in self.values.items()}
        self.values.clear()
        return seen


@dataclass
class HeadReading:
    """Reads the heads of some attention layers of all models, in a pass over the images.

    Attributes:
        layers: the attention layers.
        keys: which parts are keys.
        readers: group axis -> the module that reads the outputs of the heads.
        read: tokens whose queries and outputs count. Keys and values count at every token.
        found: the statistics of the layers, by group axis.
    """

    layers: Sequence[Attention]
    keys: set[Part]
    readers: Mapping[str, str]
    read: Read
    found: dict[str, HeadStatistics] = field(default_factory=dict)

    @property
    def modules(self) -> list[str]:
        """The modules that must run."""
        return [*self.readers.values(), *(path for layer in self.layers for path, _ in layer.pair)]

    @contextmanager
    def watching(self, models: Sequence[nn.Module]) -> Iterator[Callable[[bool], int]]:
        """Hooks on these models, for one pass. What it yields adds or forgets what a batch has shown; see `Rider`."""
        device = next(models[0].parameters()).device
        keys = {layer.axis: frozenset(self.keys.intersection(layer.pair)) for layer in self.layers}
        self.found = {x.axis: HeadStatistics.empty(x, len(models), device, keys[x.axis]) for x in self.layers}
        seen = [{layer.axis: _Seen(layer) for layer in self.layers} for _ in models]
        with ExitStack() as stack:
            for model, mine in zip(models, seen, strict=True):
                for layer in self.layers:
                    for part in layer.pair:
                        hook = mine[layer.axis].keep("keys" if part in self.keys else "queries", part[1])
                        stack.callback(model.get_submodule(part[0]).register_forward_hook(hook).remove)
                    reader = model.get_submodule(self.readers[layer.axis])
                    stack.callback(reader.register_forward_pre_hook(mine[layer.axis].keep_input()).remove)
            yield lambda add: self._take(seen, add)

    def _take(self, seen: Sequence[Mapping[str, _Seen]], add: bool) -> int:
        """Add what one batch showed, `seen[model][axis]`, or forget it; the number of its bytes."""
        read = sum(value.nbytes for mine in seen for one in mine.values() for value in one.values.values())
        for axis, statistics in self.found.items():
            values = [mine[axis].pop() for mine in seen]
            if add:
                _add(statistics, values, self.read.get(axis))
        return read

    def reduce(self, accelerator: Accelerator) -> None:
        """Replace the statistics of this process by those of all processes."""
        for statistics in self.found.values():
            statistics.reduce(accelerator)


def _add(statistics: HeadStatistics, seen: Sequence[Mapping[str, Tensor]], read: Tensor | None) -> None:
    """Add what one batch showed of one layer, `seen[model]`."""
    outputs = torch.cat([mine["outputs"] for mine in seen], -1)
    tokens = slice(None) if read is None or len(read) != outputs.shape[1] else read.to(outputs.device)
    statistics.outputs.update(outputs[:, tokens])
    for model, mine in enumerate(seen):
        alike = mine["queries"].shape[1] == outputs.shape[1]
        queries = (mine["queries"][:, tokens] if alike else mine["queries"]).flatten(0, 1)  # (T, H, u)
        centred = (mine["keys"] - mine["keys"].mean(1, keepdim=True)).flatten(0, 1)
        statistics.queries[model] += torch.einsum("thu,thv->huv", queries, queries)
        statistics.keys[model] += torch.einsum("thu,thv->huv", centred, centred)
    statistics.counts += torch.tensor([len(queries), len(centred)]).to(statistics.counts)

"""The classifiers at the end of networks: what they read, and new weights for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from hf_zipit.calibration.refit.foreign import Opinions
from hf_zipit.data.batches import Passes
from hf_zipit.running import logits_of
from hf_zipit.specs.spaces import Binding

Student = Callable[[Tensor], Tensor]  # pixels -> the logits of all classifiers side by side


@dataclass(frozen=True)
class Classifier:
    """Linear layers that end a network, or their rows for the tasks of one parent. The logits are their outputs' mean.

    Attributes:
        layers: the layers: one, or one for each token that is classified.
        parent: the number of the parent that has the tasks.
        sizes: the number of classes of each task.
        first: the first of their outputs that belongs to the tasks.
        column: the first output of the parent that does.
    """

    layers: tuple[nn.Linear, ...]
    parent: int
    sizes: tuple[int, ...]
    first: int = 0
    column: int = 0

    @property
    def rows(self) -> slice:
        """The outputs of the layers that belong to the tasks."""
        return slice(self.first, self.first + sum(self.sizes))

    @property
    def weight(self) -> Tensor:
        """The weight of the layers' mean, which reads their inputs side by side, `(m, d)`."""
        return torch.cat([layer.weight[self.rows] for layer in self.layers], 1) / len(self.layers)

    @property
    def bias(self) -> Tensor:
        """The bias of the layers' mean, `(m,)`."""
        zeros = self.layers[0].weight.new_zeros(sum(self.sizes))
        return torch.stack([zeros, *(layer.bias[self.rows] for layer in self.biased)]).sum(0) / len(self.layers)

    @property
    def biased(self) -> list[nn.Linear]:
        """The layers that have a bias."""
        return [layer for layer in self.layers if layer.bias is not None]

    def write(self, weight: Tensor, bias: Tensor) -> None:
        """Change the layers so that their mean has this weight `(m, d)` and this bias `(m,)`."""
        widths = [layer.in_features for layer in self.layers]
        for layer, mine in zip(self.layers, weight.split_with_sizes(widths, 1), strict=True):
            layer.weight.data[self.rows] = mine.to(layer.weight) * len(self.layers)
        for layer in self.biased:
            layer.bias.data[self.rows] = bias.to(layer.bias) * (len(self.layers) / len(self.biased))


def last_layers(net: nn.Module, binding: Binding) -> tuple[nn.Linear, ...]:
    """The layers of a network whose outputs are classes; none if one of them is not linear."""
    paths = dict.fromkeys(name.rpartition(".")[0] for name in binding.classifier)
    found = [net.get_submodule(path) for path in paths]
    linear = tuple(layer for layer in found if isinstance(layer, nn.Linear) and "weight" in layer._parameters)
    return linear if len(linear) == len(found) else ()


def are_last(classifiers: Sequence[Classifier], student: Student, pixels: Tensor) -> bool:
    """Whether classifiers read one vector per image and put out the logits, but for a constant per image and task.

    Args:
        classifiers: the classifiers.
        student: runs all of them.
        pixels: one image is enough, `(1, channels, H, W)`.
    """
    with _watched(classifiers) as seen:
        wanted = student(pixels)
    if any([tuple(value.shape[:-1]) for value in values] != [(len(pixels),)] for values in seen.values()):
        return False
    sizes = [size for one in classifiers for size in one.sizes]
    found = torch.cat([_joined(one, seen) @ one.weight.T + one.bias for one in classifiers], 1)
    if found.shape != wanted.shape:
        return False
    parts = zip(found.split_with_sizes(sizes, 1), wanted.split_with_sizes(sizes, 1), strict=True)
    gaps = [mine - theirs - (mine - theirs).mean(1, keepdim=True) for mine, theirs in parts]
    return bool(torch.cat(gaps, 1).abs().max() <= 1e-3 * wanted.abs().max())


def read_opinions(
    classifiers: Sequence[Classifier], student: Student, teachers: Sequence[nn.Module], passes: Passes
) -> tuple[list[Opinions], Tensor]:
    """What classifiers read and what their parents think, in one pass over the images of all data sets.

    Args:
        classifiers: the classifiers.
        student: runs all of them.
        teachers: the network of each parent, in eval mode on the device of `passes`.
        passes: one data set for each parent.

    Returns:
        The opinions for each classifier, and the number of the data set of every image, `(n,)`. The images of all
        processes are in the order of the data sets.
    """
    dtype = next(teachers[0].parameters()).dtype
    parts: list[tuple[Tensor, ...]] = []
    for pixels, origin, number in passes.numbered("Reading classifiers"):
        pixels = pixels.to(passes.device, dtype, memory_format=torch.channels_last)
        with _watched(classifiers) as seen:
            student(pixels)
        read = [_joined(one, seen).cpu() for one in classifiers]
        parts.append((origin, number, *(logits_of(teacher(pixels)).cpu() for teacher in teachers), *read))
    if passes.accelerator.num_processes > 1:
        parts = gather_object(parts)
    origin, number, *values = (torch.cat(column) for column in zip(*parts, strict=True))
    order = (origin * (number.max() + 1) + number).argsort()
    logits, read = values[: len(teachers)], values[len(teachers) :]
    found = [
        Opinions(
            x=x[order],
            logits=logits[one.parent][order, one.column : one.column + sum(one.sizes)],
            own=origin[order] == one.parent,
            sizes=one.sizes,
            weight=one.weight.cpu(),
            bias=one.bias.cpu(),
            intercept=bool(one.biased),
        )
        for x, one in zip(read, classifiers, strict=True)
    ]
    return found, origin[order]


@contextmanager
def _watched(classifiers: Sequence[Classifier]) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """What each layer reads while the context is open."""
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for one in classifiers for layer in one.layers}

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[layer].append(args[0])

    with ExitStack() as stack:
        for layer in seen:
            stack.callback(layer.register_forward_pre_hook(keep).remove)
        yield seen


def _joined(one: Classifier, seen: Mapping[nn.Module, Sequence[Tensor]]) -> Tensor:
    """What the layers of a classifier read, side by side, `(B, d)`."""
    return torch.cat([seen[layer][0] for layer in one.layers], 1)

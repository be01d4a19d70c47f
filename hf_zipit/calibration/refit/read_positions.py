"""Which positions of its output a layer is asked for: in the last block of a ViT, often the class token alone."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.calibration.refit.observe import LayerObserver
from hf_zipit.running import tensors_in

BLOCKS = 6  # equal blocks of units that are told apart: the thirds and halves of fused projections


def read_positions(
    model: nn.Module, nets: Sequence[nn.Module], layers: Sequence[Sequence[Layer]], images: Sequence[Tensor]
) -> list[dict[Layer, Tensor]]:
    """The positions at which the outputs of layers influence what a model puts out.

    A random projection of the outputs is differentiated with respect to the result of every layer. Where the gradient
    is exactly zero for a whole block of units and for all images, nothing reads these units. Only tokens are looked at:
    elsewhere a gradient is zero behind every dead unit.

    Args:
        model: the whole model, in eval mode.
        nets: networks inside the model.
        layers: some of the layers of each network.
        images: `(1, channels, H, W)` each. Two are enough to tell a dead unit from an unread one.

    Returns:
        For each network, `(P, units)` for those layers of which some positions are not read.
    """
    found: list[dict[Layer, Tensor]] = [{} for _ in nets]
    for image in images:
        keepers = [_ResultKeeper(net, mine) for net, mine in zip(nets, layers, strict=True)]
        for mine, gradients in zip(found, _gradients(model, keepers, image), strict=True):
            for layer, gradient in gradients.items():
                influence = gradient != 0
                mine[layer] = mine[layer] | influence if layer in mine else influence
    masks = [{layer: _by_block(influence) for layer, influence in mine.items()} for mine in found]
    return [{layer: mask for layer, mask in mine.items() if not mask.all()} for mine in masks]


def _by_block(influence: Tensor) -> Tensor:
    """`(P, units)`: whether any unit of a unit's block has influence. A block without any counts as read everywhere."""
    count = next(count for count in (BLOCKS, 3, 2, 1) if influence.shape[1] % count == 0)
    blocks = influence.reshape(len(influence), count, -1).any(-1)
    read: Tensor = blocks | ~blocks.any(0)
    return read.repeat_interleave(influence.shape[1] // count, 1)


def _gradients(model: nn.Module, keepers: Sequence["_ResultKeeper"], image: Tensor) -> list[dict[Layer, Tensor]]:
    """For each keeper and each layer that puts out tokens, the gradient at its result, `(P, units)`."""
    with torch.enable_grad():
        with ExitStack() as stack:
            for keeper in keepers:
                stack.enter_context(keeper)
            output = model(image.clone().requires_grad_())
        outputs = [value for value in tensors_in(output) if value.requires_grad]
        kept = [result for keeper in keepers for _, result in keeper.kept.values()]
        if not outputs or not kept:
            return [{} for _ in keepers]
        generator = torch.Generator().manual_seed(0)
        random = [torch.randn(value.shape, generator=generator).to(value) for value in outputs]
        gradients = iter(torch.autograd.grad(outputs, kept, random, allow_unused=True))
    found: list[dict[Layer, Tensor]] = [{} for _ in keepers]
    for mine, keeper in zip(found, keepers, strict=True):
        for layer, (path, _) in keeper.kept.items():
            gradient = next(gradients)
            if gradient is not None:
                mine[layer] = keeper.sampled(path, gradient)[0]
    return found


class _ResultKeeper(LayerObserver):
    """Keeps the results of layers themselves, as far as they are tokens, so that they can be differentiated.

    Attributes:
        kept: for each layer, the path of its last map and its result.
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__(net, layers, images=1, inputs=False)
        self.kept: dict[Layer, tuple[str, Tensor]] = {}

    def keep(self, layer: Layer, path: str, result: Tensor) -> None:
        """Keep a result without copying it."""
        if result.ndim == 3 and result.requires_grad:
            self.kept[layer] = path, result

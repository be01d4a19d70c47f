# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""The CIFAR ResNet of He et al. (2016), section 4.2, as a timm model: `timm.create_model("cifar_resnet20", width=4)`.

Importing this module registers the architecture. The file is copied into merged repositories that need it.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn


class CifarResNet(ResNet):
    """A ResNet with three stages of 16, 32 and 64 channels, a 3 x 3 stem without pooling, and 1 x 1 projections.

    Args:
        width: multiplies all channels.
        depth: number of layers, 6 n + 2.
        **kwargs: passed to timm's `ResNet`.

    Raises:
        ValueError: the depth is not 6 n + 2.
    """

    def __init__(self, width: int = 1, depth: int = 20, **kwargs: Any) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}: a CIFAR ResNet has 6 n + 2 layers (8, 14, 20, ...)")
        blocks = (depth - 2) // 6
        channels = tuple(c * width for c in (16, 32, 64))
        super().__init__(BasicBlock, (blocks,) * 3, channels=channels, stem_type="deep", stem_width=8 * width, **kwargs)
        self.model_args = {"width": width, "depth": depth}
        self.conv1 = nn.Conv2d(kwargs.get("in_chans", 3), channels[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.layer4 = nn.Sequential()


default_cfgs = generate_default_cfgs(
    {
        "cifar_resnet20.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (8, 8),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


def cifar_resnet20(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-20 for 32 x 32 images; `width` and `depth` are those of `CifarResNet`."""
    return build_model_with_cfg(CifarResNet, "cifar_resnet20", pretrained, **kwargs)


if not is_model("cifar_resnet20"):  # several merged repositories may each bring this file
    register_model(cifar_resnet20)

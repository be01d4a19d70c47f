# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""The CIFAR ResNet of He et al. (2016), section 4.2, as a timm model: `timm.create_model("cifar_resnet20", width=4)`.

Importing this module registers the architecture. The file is copied into merged repositories that need it.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn


class CifarResNet(ResNet):
    """A ResNet with stages of 16, 32, 64, ... channels, a 3 x 3 stem without pooling, and 1 x 1 projections.

    With `stages=4, depth=18, width=4` it is the ResNet-18 that papers train on CIFAR.

    Args:
        width: multiplies all channels.
        depth: number of layers, 6 n + 2; with four stages 8 n + 2.
        stages: 3 or 4.
        **kwargs: passed to timm's `ResNet`.

    Raises:
        ValueError: there is no such network.
    """

    def __init__(self, width: int = 1, depth: int = 20, stages: int = 3, **kwargs: Any) -> None:
        if stages not in (3, 4):
            raise ValueError(f"stages is {stages}: a CIFAR ResNet has 3 or 4")
        step = 2 * stages
        if depth < step + 2 or (depth - 2) % step:
            few = ", ".join(str(step * n + 2) for n in (1, 2, 3))
            raise ValueError(
                f"depth is {depth}: a CIFAR ResNet of {stages} stages has {step} n + 2 layers ({few}, ...)"
            )
        blocks = (depth - 2) // step
        channels = tuple(16 * width * 2**i for i in range(stages))
        kwargs = {"channels": channels, "stem_type": "deep", "stem_width": 8 * width, **kwargs}
        super().__init__(BasicBlock, (blocks,) * stages, **kwargs)
        self.model_args = {"width": width, "depth": depth} | ({"stages": stages} if stages != 3 else {})
        self.conv1 = nn.Conv2d(kwargs.get("in_chans", 3), channels[0], 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        if stages == 3:
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
    """ResNet-20 for 32 x 32 images; arguments are those of `CifarResNet`."""
    return build_model_with_cfg(CifarResNet, "cifar_resnet20", pretrained, **kwargs)


if not is_model("cifar_resnet20"):  # several merged repositories may each bring this file
    register_model(cifar_resnet20)

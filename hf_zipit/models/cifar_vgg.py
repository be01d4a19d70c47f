# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""VGG-11 for 32 x 32 images (Simonyan and Zisserman, 2015) in timm: `timm.create_model("cifar_vgg11", width=1)`.

Importing this module registers the architecture. The file is copied into merged repositories that need it.
"""

from typing import Any

from timm.layers import ClassifierHead
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.vgg import VGG, ConvMlp
from torch import nn


class CifarVGG(VGG):
    """A VGG-11 whose five poolings reduce a 32 x 32 image to one position, which a linear classifier reads.

    Args:
        width: multiplies all channels.
        batch_norm: add a batch norm after each convolution.
        **kwargs: passed to timm's `VGG`.
    """

    def __init__(self, width: float = 1, batch_norm: bool = False, **kwargs: Any) -> None:
        a, b, c, d = (int(n * width) for n in (64, 128, 256, 512))
        norm = nn.BatchNorm2d if batch_norm else None
        super().__init__(
            [a, "M", b, "M", c, c, "M", d, d, "M", d, d, "M"], norm_layer=norm, mlp_ratio=1 / 4096, **kwargs
        )
        self.model_args = {"width": width, "batch_norm": batch_norm}
        self.pre_logits = ConvMlp(d, d, kernel_size=1, drop_rate=self.drop_rate)
        self.head = ClassifierHead(d, self.num_classes, pool_type="avg", drop_rate=self.drop_rate)
        self.head_hidden_size = d
        self._initialize_weights()


default_cfgs = generate_default_cfgs(
    {
        "cifar_vgg11.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (1, 1),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "features.0",
            "classifier": "head.fc",
        }
    }
)


def cifar_vgg11(pretrained: bool = False, **kwargs: Any) -> VGG:
    """VGG-11 for 32 x 32 images; `width` and `batch_norm` are those of `CifarVGG`."""
    return build_model_with_cfg(CifarVGG, "cifar_vgg11", pretrained, **kwargs)


if not is_model("cifar_vgg11"):  # several merged repositories may each bring this file
    register_model(cifar_vgg11)

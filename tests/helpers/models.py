"""Tiny models of the real classes, with random parameters and norm statistics."""

import timm
import torch
import transformers
from torch import nn

import hf_zipit.models.cifar_resnet
import hf_zipit.models.cifar_vgg  # noqa: F401  (both register their model with timm)
from hf_zipit.find_spec import find_spec
from hf_zipit.sources.load import load_source
from hf_zipit.specs.binding import bind
from hf_zipit.specs.parser import list_specs
from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.permute import permuted, random_labels, randomise

NARROW = {"channels": (8, 16, 24, 32), "num_classes": 5}
TINY = {
    "resnet18": {**NARROW, "layers": (2, 1, 1, 1)},
    "resnet50": {**NARROW, "layers": (2, 1, 1, 1)},
    "resnet50d": {**NARROW, "layers": (1, 1, 1, 1)},
    "seresnet50": {**NARROW, "layers": (1, 1, 1, 1)},
    "resnetblur50": {**NARROW, "layers": (1, 1, 1, 1)},
    "resnext50_32x4d": {**NARROW, "channels": (64, 64, 64, 64), "layers": (1, 1, 1, 1), "cardinality": 4},
    "resnet50_gn": {"channels": (64, 64, 64, 64), "num_classes": 5, "layers": (1, 1, 1, 1)},
    "cifar_resnet20": {"depth": 8, "num_classes": 5},
}


def tiny(name: str, seed: int = 0, **kwargs: object) -> nn.Module:
    """A tiny timm model in eval mode."""
    model = timm.create_model(name, **{**TINY[name], **kwargs}).eval()
    return randomise(model, seed)


def hf_vit(seed: int = 0, **changes: object) -> nn.Module:
    """A tiny transformers ViT."""
    config = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config |= {"image_size": 32, "patch_size": 8, "num_labels": 5, **changes}
    return randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**config)).eval(), seed)


def timm_vit(seed: int = 0, name: str = "vit_tiny_patch16_224", **changes: object) -> nn.Module:
    """A tiny timm ViT."""
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 4, "depth": 3, "num_classes": 5, **changes}
    return randomise(timm.create_model(name, **args).eval(), seed)


def vgg(seed: int = 0, norm: bool = False) -> nn.Module:
    """A tiny timm VGG. Its classifier, which timm builds with 4096 units, is rebuilt with 16."""
    norm_layer = nn.BatchNorm2d if norm else None
    model = timm.models.vgg.VGG([6, "M", 8, 10, "M"], num_classes=5, norm_layer=norm_layer)
    model.num_features = model.head_hidden_size = 16
    model.pre_logits = timm.models.vgg.ConvMlp(10, 16)
    model.head = timm.models.vgg.ClassifierHead(16, 5)
    model.pretrained_cfg = {"architecture": "vgg11", "input_size": (3, 32, 32)}
    return randomise(model.eval(), seed)


def cifar_vgg(seed: int = 0, norm: bool = False) -> nn.Module:
    """A tiny VGG for 32 x 32 images."""
    return randomise(timm.create_model("cifar_vgg11", width=1 / 8, batch_norm=norm, num_classes=5).eval(), seed)


def resnet_spec_binding(model: nn.Module) -> Binding:
    """The spec of timm's ResNets, bound to a model."""
    spec = next(s for s in list_specs() if s.family == "timm-resnet")
    return bind(spec, model)


def shuffled(model: nn.Module, seed: int = 1) -> nn.Module:
    """A copy with the units of every space permuted: the same function."""
    binding = find_spec(load_source(model))
    return permuted(model, binding, random_labels(binding, seed))


def images(count: int = 64, size: int = 32, seed: int = 0, batch: int = 16) -> list[torch.Tensor]:
    """Batches of random pixels."""
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).split(batch))

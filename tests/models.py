"""Tiny models of the real classes, with random parameters and norm statistics."""

import timm
import torch
from torch import nn

import hf_zipit.cifar_resnet  # noqa: F401  (registers cifar_resnet20)
from hf_zipit.binding import bind
from hf_zipit.checks import permuted, random_labels, randomise
from hf_zipit.sources import load
from hf_zipit.spaces import Binding
from hf_zipit.spec import list_specs

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


def resnet_spec_binding(model: nn.Module) -> Binding:
    spec = next(s for s in list_specs() if s.family == "timm-resnet")
    return bind(spec, model)


def shuffled(model: nn.Module, seed: int = 1) -> nn.Module:
    """A copy with the units of every space permuted: the same function."""
    binding = resnet_spec_binding(model)
    return permuted(model, binding, random_labels(binding, seed))


def images(count: int = 64, size: int = 32, seed: int = 0, batch: int = 16) -> list[torch.Tensor]:
    """Batches of random pixels."""
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).split(batch))


__all__ = ["TINY", "images", "load", "resnet_spec_binding", "shuffled", "tiny"]

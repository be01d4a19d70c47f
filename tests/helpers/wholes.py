"""Tiny models around a backbone: a decoder of our own, and models of transformers and segmentation-models-pytorch."""

import dataclasses

import segmentation_models_pytorch as smp
import timm
import torch
import transformers
from torch import nn

import hf_zipit
from hf_zipit.find_spec import describe
from hf_zipit.sources.load import load_source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.transform.permute import permuted, random_labels, randomise

NARROW = {"channels": (8, 16, 24, 32), "layers": (2, 1, 1, 1)}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(9))
TASKS = ["classes", "maps"]


class Pyramid(nn.Module):
    """A decoder that reads every stage of a timm ResNet."""

    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.encoder = timm.create_model("resnet18", features_only=True, **{**NARROW, **changes})
        self.lateral = nn.ModuleList(nn.Conv2d(c, 4, 1) for c in self.encoder.feature_info.channels())

    def forward(self, x):
        maps = [conv(f) for conv, f in zip(self.lateral, self.encoder(x), strict=True)]
        return sum(nn.functional.interpolate(m, size=x.shape[2:]) for m in maps)


def pyramid(seed=1, **changes):
    """A pyramid with random parameters and norm statistics; `changes` go to its encoder."""
    return randomise(Pyramid(**changes).eval(), seed)


def whole(model, kind="image-to-image"):
    """A model in memory as a source for the task `maps`."""
    return hf_zipit.module_source(model, kind, name="maps")


def shuffled_whole(model):
    """A copy with the units of every space permuted, the decoder included: the same function."""
    text = describe(model, PIXELS[:1], "traced")
    binding = bind(specs.parse(text, "traced"), model)
    return permuted(model, binding, random_labels(binding, 1))


def answer(model, pixels=PIXELS, **kwargs):
    """The output of a model, without gradients."""
    with torch.no_grad():
        return model(pixels, **kwargs)


def resnet_config(**changes):
    """A tiny ResNet of transformers."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [2, 1, 1], "layer_type": "basic"}
    return transformers.ResNetConfig(**sizes, **changes)


def upernet():
    """A segmentation model around a tiny ResNet."""
    stages = ["stage1", "stage2", "stage3"]
    config = transformers.UperNetConfig(
        backbone_config=resnet_config(out_features=stages),
        pool_scales=[1, 2],
        hidden_size=16,
        use_auxiliary_head=False,
        num_labels=3,
    )
    return transformers.UperNetForSemanticSegmentation(config)


def dinov2_config(**changes):
    """A tiny DINOv2 of transformers."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    return transformers.Dinov2Config(**sizes, **changes)


def depth_anything():
    """A depth model around a tiny DINOv2."""
    config = transformers.DepthAnythingConfig(
        backbone_config=dinov2_config(out_indices=[1, 2, 3], reshape_hidden_states=False),
        patch_size=8,
        reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 12, 16],
        fusion_hidden_size=16,
        reassemble_factors=[2, 1, 0.5],
        head_hidden_size=8,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


def segformer(cls, labels):
    """A tiny SegFormer of the given class, with `labels` classes."""
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]}
    config = transformers.SegformerConfig(
        **sizes, decoder_hidden_size=16, sr_ratios=[2, 2, 1, 1], image_size=64, num_labels=labels
    )
    return cls(config)


def vit_config(**changes):
    """A tiny ViT of transformers."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    return transformers.ViTConfig(**sizes, image_size=32, patch_size=8, **changes)


# a classifier, and a model with another output around the same backbone
PAIRS = {
    "UperNet": (lambda: transformers.ResNetForImageClassification(resnet_config(num_labels=5)), upernet),
    "SegFormer": (
        lambda: segformer(transformers.SegformerForImageClassification, 5),
        lambda: segformer(transformers.SegformerForSemanticSegmentation, 3),
    ),
    "Depth Anything": (lambda: transformers.Dinov2ForImageClassification(dinov2_config(num_labels=5)), depth_anything),
    "masked images": (
        lambda: transformers.ViTForImageClassification(vit_config(num_labels=5)),
        lambda: transformers.ViTForMaskedImageModeling(vit_config(encoder_stride=8)),
    ),
    "smp Unet": (lambda: timm.create_model("resnet18", num_classes=5, **NARROW), lambda: unet()),
}


def unet():
    """A segmentation model of segmentation-models-pytorch around a tiny timm ResNet."""
    sizes = {"decoder_channels": (16, 8, 8, 8, 8), **NARROW}
    return smp.Unet("tu-resnet18", encoder_weights=None, classes=2, **sizes)


def small(make, seed, size=None):
    """A model as a source, with random parameters; `size`: height and width of its images."""
    source = load_source(randomise(make().eval(), seed))
    return dataclasses.replace(source, preprocessing={"input_size": (3, size, size)}) if size else source

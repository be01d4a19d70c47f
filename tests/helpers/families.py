"""Tiny models of every family that a spec file describes, with random parameters and norm statistics."""

import functools

import timm
import torch
import transformers
from torch import nn

from hf_zipit.transform.permute import randomise
from tests.helpers.models import TINY, cifar_vgg, hf_vit, timm_vit, tiny, vgg

VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {**VIT, "intermediate_size": 48}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
HF_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
EVA = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 3}
STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1]}


def hf(name: str, seed: int = 0, **config: object) -> nn.Module:
    """A tiny transformers image classifier, by the name of its class."""
    cls = getattr(transformers, name)
    if name.startswith(("CLIP", "Siglip")):
        config = {"vision_config": {k: v for k, v in config.items() if k != "num_labels"}}
    return randomise(cls(cls.config_class(**{"num_labels": 5, **config})).eval(), seed)


def resnetv2(seed: int = 0, norm: bool = False, **changes: object) -> nn.Module:
    """A tiny timm ResNetV2: with group norms and standardised weights, or with batch norms."""
    layers = {"norm_layer": functools.partial(timm.layers.GroupNormAct, num_groups=4)}
    if norm:
        layers = {"norm_layer": timm.layers.BatchNormAct2d, "conv_layer": timm.layers.create_conv2d}
    args = {"layers": (2, 1), "channels": (32, 64), "stem_chs": 16, "num_classes": 5, **layers, **changes}
    model = timm.models.resnetv2.ResNetV2(**args)
    model.pretrained_cfg = {"architecture": "resnetv2_50", "input_size": (3, 32, 32)}
    return randomise(model.eval(), seed)


def timm_convnext(seed: int = 0, name: str = "convnext_atto", **changes: object) -> nn.Module:
    """A tiny timm ConvNeXt."""
    args = {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24), "num_classes": 5, **changes}
    return randomise(timm.create_model(name, **args).eval(), seed)


def timm_swin(seed: int = 0, name: str = "swin_tiny_patch4_window7_224", **changes: object) -> nn.Module:
    """A tiny timm Swin."""
    model = timm.create_model(name, num_classes=5, **{**SWIN, **changes})
    return randomise(model.eval(), seed)


def eva(seed: int = 0, name: str = "vit_small_patch16_dinov3", **changes: object) -> nn.Module:
    """A tiny timm ViT with rotary embeddings, which need a multiple of four units for each head."""
    return timm_vit(seed, name, **{**EVA, **changes})


SEGFORMER = {"num_attention_heads": [1, 2, 2, 4], "sr_ratios": [4, 2, 1, 1], "strides": [2, 2, 2, 2]}
STEM = "ds_r1_k3_s1_e1_c8_se0.25"
UNIVERSAL = ["uir_r1_a3_k3_s2_e4_c12", "uir_r2_a3_k0_s1_e4_c12"]
INVERTED = ["ir_r2_k3_s2_e4_c12_se0.25"]


def efficientnet(
    seed: int = 0, mobile: bool = False, stages: tuple[object, ...] = (INVERTED,), **changes: object
) -> nn.Module:
    """A tiny timm EfficientNet or MobileNet: a stage for each list of blocks in timm's notation, after a first one."""
    cls = timm.models.mobilenetv3.MobileNetV3 if mobile else timm.models.efficientnet.EfficientNet
    layers = timm.models._efficientnet_builder.decode_arch_def([[STEM], *stages])
    model = cls(layers, num_classes=5, num_features=24, stem_size=8, **changes)
    model.pretrained_cfg = {"architecture": "efficientnet_b0", "input_size": (3, 32, 32)}
    return randomise(model.eval(), seed)


def described(name: str) -> nn.Module:
    """A model named under `check:` in a spec, on the meta device: shapes without weights."""
    with torch.device("meta"):
        if not name.startswith("transformers."):
            return timm.create_model(name)
        cls = getattr(transformers, name.partition(".")[2])
        return cls(cls.config_class())


make = functools.partial
FAMILIES = {
    "timm-resnet": {name: make(tiny, name) for name in TINY},
    "timm-vit": {
        "plain": timm_vit,
        "layer scale, registers": make(timm_vit, name="vit_small_patch14_reg4_dinov2"),
        "mean pooling": make(timm_vit, class_token=False, global_pool="avg"),
        "norm before": make(timm_vit, name="vit_base_patch16_clip_224"),
        "attention pool": make(timm_vit, name="vit_base_patch16_siglip_224"),
        "class token without position": make(timm_vit, name="deit3_small_patch16_224"),
    },
    "timm-efficientnet": {
        "EfficientNet": efficientnet,
        "V2": make(efficientnet, stages=(["cn_r1_k3_s1_c8_skip"], ["er_r2_k3_s2_e4_c12_se0.25"], INVERTED)),
        "MobileNetV3": make(efficientnet, mobile=True, stages=(INVERTED, ["cn_r1_k1_s1_c16"])),
        "MobileNetV4": make(efficientnet, mobile=True, stages=(UNIVERSAL,), head_norm=True),
    },
    "timm-eva": {
        "DINOv3": eva,
        "EVA-02": make(eva, name="eva02_tiny_patch14_224"),
        "scaled SwiGLU": make(eva, name="eva02_base_patch16_clip_224"),
        "attention pool": make(eva, name="vit_pe_core_tiny_patch16_384", attn_pool_num_heads=2),
    },
    "timm-vgg": {"plain": vgg, "batch norm": make(vgg, norm=True), "cifar": cifar_vgg},
    "timm-convnext": {
        "convolutions": timm_convnext,
        "linear": make(timm_convnext, conv_mlp=False),
        "v2": make(timm_convnext, name="convnextv2_atto"),
        "norm first": make(timm_convnext, head_norm_first=True),
    },
    "timm-resnetv2": {
        "group norm": resnetv2,
        "batch norm, deep stem": make(resnetv2, norm=True, stem_type="deep", avg_down=True),
        "basic": make(resnetv2, norm=True, basic=True, bottle_ratio=1.0),
    },
    "timm-swin": {"plain": timm_swin},
    "timm-swinv2": {"plain": make(timm_swin, name="swinv2_tiny_window8_256")},
    "hf-vit": {"plain": hf_vit},
    "hf-deit": {
        "plain": make(hf, "DeiTForImageClassification", **MLP),
        "distilled": make(hf, "DeiTForImageClassificationWithTeacher", **MLP),
    },
    "hf-dinov2": {
        "plain": make(hf, "Dinov2ForImageClassification", **VIT, mlp_ratio=2),
        "swiglu": make(hf, "Dinov2ForImageClassification", **VIT, mlp_ratio=2, use_swiglu_ffn=True),
        "registers": make(hf, "Dinov2WithRegistersForImageClassification", **VIT, mlp_ratio=2),
    },
    "hf-beit": {
        "relative positions": make(hf, "BeitForImageClassification", **MLP, use_relative_position_bias=True),
        "first token": make(
            *(hf, "BeitForImageClassification"),
            **(MLP | {"use_mean_pooling": False, "use_absolute_position_embeddings": True, "use_mask_token": True}),
        ),
    },
    "hf-clip": {"plain": make(hf, "CLIPForImageClassification", **MLP)},
    "hf-segformer": {"plain": make(hf, "SegformerForImageClassification", **STAGES, **SEGFORMER)},
    "hf-siglip": {
        "plain": make(hf, "SiglipForImageClassification", **MLP, vision_use_head=False),
        "attention pool": make(hf, "SiglipForImageClassification", **MLP),
    },
    "hf-swin": {"plain": make(hf, "SwinForImageClassification", **HF_SWIN, use_absolute_embeddings=True)},
    "hf-swinv2": {"plain": make(hf, "Swinv2ForImageClassification", **HF_SWIN)},
    "hf-convnext": {
        "v1": make(hf, "ConvNextForImageClassification", **STAGES),
        "v2": make(hf, "ConvNextV2ForImageClassification", **STAGES),
    },
    "hf-resnet": {
        "bottleneck": make(hf, "ResNetForImageClassification", embedding_size=8, **STAGES),
        "basic": make(hf, "ResNetForImageClassification", embedding_size=8, layer_type="basic", **STAGES),
    },
}

"""Models of popular classes, with a spec file or without, as small as their class allows: a name, the image, options.

`tests/tracing/test_zoo.py` traces each of them, and `benchmarks/traced_models.py` writes a table of the results.
"""

import timm
import transformers
from torch import nn

VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {**VIT, "intermediate_size": 64}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
RESNET = {"embedding_size": 8, "layer_type": "basic", **STAGES}
DETR = {
    **{"d_model": 32, "encoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_ffn_dim": 48},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "num_queries": 7, "encoder_layers": 1},
}
RT_DETR = {
    **DETR,
    **{"encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32]},
    **{"num_denoising": 0, "decoder_n_points": 2},
}
HGNET = {
    **{"embedding_size": 8, "stem_channels": [3, 8, 8], **STAGES, "stage_in_channels": [8, 8, 16, 24]},
    **{"stage_mid_channels": [8, 8, 8, 8], "stage_out_channels": [8, 16, 24, 32], "stage_num_blocks": [1, 1, 1, 1]},
    "stage_numb_of_layers": [2, 2, 2, 2],
}
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32, "patch_size": 2}
VIT_TIMM = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}

TIMM = {  # architecture: (size of the image, options)
    "mobilenetv4_conv_small": (64, {}),
    "mobilenetv4_hybrid_medium": (64, {}),
    "mobilenetv2_100": (64, {}),
    "mobilenetv3_small_100": (64, {}),
    "efficientnet_b0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "convnextv2_atto": (64, {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 24)}),
    "swinv2_tiny_window8_256": (
        64,
        {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4},
    ),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}),
    "tiny_vit_5m_224": (224, {}),
    "repvit_m0_9": (64, {}),
    "inception_v3": (128, {"aux_logits": False}),
    "densenet121": (64, {"block_config": (1, 1, 1, 1)}),
    "vit_small_patch16_dinov3": (64, VIT_TIMM),
    "vit_base_patch16_siglip_224": (64, VIT_TIMM),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 2}),
    "deit3_small_patch16_224": (64, VIT_TIMM),
    "hiera_tiny_224": (64, {"img_size": 64, "embed_dim": 16, "stages": (1, 1, 1, 1)}),
    "beitv2_base_patch16_224": (64, VIT_TIMM),
    "fastvit_t8": (64, {"layers": (1, 1, 1, 1)}),
    "efficientformerv2_s0": (64, {"img_size": 64, "depths": (1, 1, 1, 2)}),
    "edgenext_xx_small": (64, {}),
    "coatnet_pico_rw_224": (64, {"img_size": 64}),
    "mambaout_femto": (64, {"depths": (1, 1, 1, 1)}),
    "nextvit_small": (64, {}),
    "ghostnet_100": (64, {}),
    "seresnext26ts": (64, {}),
    "aimv2_large_patch14_224": (56, {**VIT_TIMM, "img_size": 56}),
    "mixer_s32_224": (224, {}),
    "resnest14d": (64, {}),
    "levit_128s": (64, {"img_size": 64, "depth": (1, 1, 1)}),
    "visformer_tiny": (64, {"img_size": 64, "depth": (1, 1, 1)}),
    "efficientformer_l1": (224, {}),
    "focalnet_tiny_srf": (64, {}),
    "cait_xxs24_224": (64, {"img_size": 64, "depth": 2}),
}
TRANSFORMERS = {  # class: (size of the image, configuration, configuration of the backbone)
    "SiglipForImageClassification": (32, {"vision_config": MLP}, None),
    "SiglipVisionModel": (32, MLP, None),
    "DINOv3ViTModel": (32, MLP, None),
    "Dinov2WithRegistersForImageClassification": (32, {**VIT, "mlp_ratio": 2}, None),
    "ViTMSNForImageClassification": (32, MLP, None),
    "SegformerForImageClassification": (64, {**STAGES, "num_attention_heads": [1, 2, 4, 8]}, None),
    "DepthAnythingForDepthEstimation": (
        32,
        {
            "patch_size": 8,
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 8, 8, 8],
            "fusion_hidden_size": 8,
            "head_hidden_size": 8,
        },
        (
            "Dinov2Config",
            {
                **VIT,
                "mlp_ratio": 2,
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
        ),
    ),
    "UperNetForSemanticSegmentation": (
        64,
        {"hidden_size": 16, "auxiliary_in_channels": 24, "auxiliary_channels": 8},
        ("ConvNextConfig", {**STAGES, "out_indices": [1, 2, 3, 4]}),
    ),
    "Swinv2ForImageClassification": (32, SWIN, None),
    "EfficientNetForImageClassification": (
        64,
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        None,
    ),
    "MobileNetV2ForImageClassification": (64, {}, None),
    "MobileViTForImageClassification": (64, {"image_size": 64}, None),
    "DINOv3ConvNextModel": (64, STAGES, None),
    "PvtV2ForImageClassification": (64, {"image_size": 64, **STAGES, "num_attention_heads": [1, 2, 4, 8]}, None),
    "RegNetForImageClassification": (64, {"embedding_size": 8, **STAGES, "groups_width": 8}, None),
    "Data2VecVisionForImageClassification": (32, MLP, None),
    "IJepaForImageClassification": (32, MLP, None),
    "Aimv2VisionModel": (32, MLP, None),
    "LevitForImageClassification": (64, {"image_size": 64, "depths": [1, 1, 1]}, None),
    "TextNetForImageClassification": (
        64,
        {
            "image_size": 64,
            "stem_out_channels": 8,
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
            "conv_layer_strides": [[2], [2], [2], [2]],
            "hidden_sizes": [8, 8, 12, 16, 24],
        },
        None,
    ),
    "BitForImageClassification": (
        64,
        {"embedding_size": 8, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1], "num_groups": 4},
        None,
    ),
    "HieraForImageClassification": (
        64,
        {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
        None,
    ),
    "SamVisionModel": (
        64,
        {
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "window_size": 2,
            "global_attn_indexes": [1],
        },
        None,
    ),
    "YolosForObjectDetection": (32, {**MLP, "image_size": [32, 32], "num_detection_tokens": 5}, None),
    "Mask2FormerForUniversalSegmentation": (
        64,
        {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 48,
            "dim_feedforward": 48,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 4,
            "num_queries": 5,
        },
        (
            "SwinConfig",
            {
                "embed_dim": 8,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 2, 4, 8],
                "window_size": 2,
                "image_size": 64,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
        ),
    ),
    "DetrForObjectDetection": (64, DETR, ("ResNetConfig", {**RESNET, "out_features": ["stage4"]})),
    "RTDetrForObjectDetection": (64, RT_DETR, ("RTDetrResNetConfig", {**RESNET, "out_indices": [2, 3, 4]})),
    "RTDetrV2ForObjectDetection": (64, RT_DETR, ("RTDetrResNetConfig", {**RESNET, "out_indices": [2, 3, 4]})),
    "DeformableDetrForObjectDetection": (
        128,
        {**DETR, "num_feature_levels": 2, "encoder_n_points": 2, "decoder_n_points": 2},
        ("ResNetConfig", {**RESNET, "out_features": ["stage3", "stage4"]}),
    ),
    "DFineForObjectDetection": (
        64,
        {**RT_DETR, "lqe_hidden_dim": 8, "depth_mult": 0.34},
        ("HGNetV2Config", {**HGNET, "out_indices": [2, 3, 4]}),
    ),
    "FocalNetForImageClassification": (
        32,
        {
            "image_size": 32,
            "embed_dim": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
        },
        None,
    ),
}
ZOO = {**{name: f"timm {name}" for name in TIMM}, **{name: f"transformers {name}" for name in TRANSFORMERS}}


def build(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model of the zoo, and the size of its images."""
    if name in TIMM:
        size, options = TIMM[name]
        return timm.create_model(name, num_classes=5, **options).eval(), (3, size, size)
    size, options, backbone = TRANSFORMERS[name]
    if backbone is not None:
        kind, inner = backbone
        options = {**options, "backbone_config": getattr(transformers, kind)(**inner)}
    cls = getattr(transformers, name)
    return cls(cls.config_class(**options)).eval(), (3, size, size)

"""Tiny detectors of transformers, folders and images with objects for them."""

import datasets
import numpy as np
import torch
import transformers
from PIL import Image

from hf_zipit.transform.permute import randomise
from tests.helpers.wholes import resnet_config, small

NAMES = {"a": ["cat", "dog", "cow"], "b": ["car", "bus"]}
RANDOM = np.random.default_rng(0)
PICTURES = [Image.fromarray(RANDOM.integers(0, 255, (40, 48, 3), dtype=np.uint8)) for _ in range(8)]
SIZES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
LAYERS = {
    f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("attention_heads", 2), ("ffn_dim", 24))
}


def yolos(labels=3, **changes):
    """A YOLOS of three layers for images of 32 x 32."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    more = {"image_size": [32, 32], "patch_size": 8, "num_detection_tokens": 5, "use_mid_position_embeddings": False}
    config = transformers.YolosConfig(**{**sizes, **more, **changes}, num_labels=labels)
    return transformers.YolosForObjectDetection(config)


def detr(labels=3):
    """A DETR around a ResNet with frozen batch norms."""
    backbone = resnet_config(out_features=["stage3"])
    config = transformers.DetrConfig(backbone_config=backbone, **SIZES, **LAYERS, num_labels=labels)
    return transformers.DetrForObjectDetection(config)


def deformable(labels=3):
    """A Deformable DETR, which reads two stages of its backbone and holds layers under two names."""
    backbone = resnet_config(out_features=["stage2", "stage3"])
    more = {"num_feature_levels": 3, "encoder_n_points": 2, "decoder_n_points": 2}
    config = transformers.DeformableDetrConfig(backbone_config=backbone, **SIZES, **LAYERS, **more, num_labels=labels)
    return transformers.DeformableDetrForObjectDetection(config)


def _hybrid():
    """The sizes that RT-DETR and D-FINE have in common."""
    sizes = {"encoder_hidden_dim": 16, "encoder_in_channels": [16, 24, 32], "feat_strides": [8, 16, 32]}
    more = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    decoder = {"d_model": 16, "num_queries": 5, "decoder_in_channels": [16] * 3, "decoder_layers": 2}
    rest = {"decoder_n_points": 2, "num_denoising": 0, "anchor_image_size": None, "eval_size": None}
    return {**sizes, **more, **decoder, **rest}


def rt_detr(labels=3, version=""):
    """An RT-DETR, or with `version="V2"` the second one."""
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4, "layer_type": "basic"}
    backbone = transformers.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])
    config = getattr(transformers, f"RTDetr{version}Config")(backbone_config=backbone, **_hybrid(), num_labels=labels)
    return getattr(transformers, f"RTDetr{version}ForObjectDetection")(config)


def d_fine(labels=3):
    """A D-FINE around an HGNet."""
    widths = {
        "stage_in_channels": [8, 16, 16, 24],
        "stage_mid_channels": [8] * 4,
        "stage_out_channels": [16, 16, 24, 32],
    }
    depths = {"depths": [1] * 4, "stage_num_blocks": [1] * 4, "stage_numb_of_layers": [2] * 4}
    sizes = {"embedding_size": 8, "stem_channels": [3, 8, 8], "hidden_sizes": [16, 16, 24, 32], **widths, **depths}
    backbone = transformers.HGNetV2Config(**sizes, out_features=["stage2", "stage3", "stage4"])
    config = transformers.DFineConfig(backbone_config=backbone, **_hybrid(), max_num_bins=8, num_labels=labels)
    return transformers.DFineForObjectDetection(config)


FAMILIES = {
    "YOLOS": yolos,
    "DETR": detr,
    "Deformable DETR": deformable,
    "RT-DETR": rt_detr,
    "RT-DETR v2": lambda labels=3: rt_detr(labels, "V2"),
    "D-FINE": d_fine,
}


def sides(name):
    """Height and width of the images of a family."""
    return 32 if name == "YOLOS" else 64


def source(name, seed, **changes):
    """A detector as a source, with random weights."""
    return small(lambda: FAMILIES[name](**changes), seed, sides(name))


def save_detector(folder, name, seed, make=yolos, processor=None):
    """Write a detector with class names and an image processor, and return the folder."""
    torch.manual_seed(seed)
    model = randomise(make(labels=len(NAMES[name])).eval(), seed)
    model.config.id2label = dict(enumerate(NAMES[name]))
    model.config.label2id = {label: i for i, label in enumerate(NAMES[name])}
    model.save_pretrained(folder / name)
    default = transformers.YolosImageProcessor(size={"height": 32, "width": 32}, do_pad=False)
    (processor or default).save_pretrained(folder / name)
    return folder / name


def object_data(boxes, names):
    """A data set of the pictures, with `(box, class name)` pairs for each, as detection data sets on the Hub are."""
    objects = [
        {"bbox": [box for box, _ in mine], "category": [names.index(label) for _, label in mine]} for mine in boxes
    ]
    number = datasets.List(datasets.Value("float32"))
    kinds = {"bbox": datasets.List(number), "category": datasets.List(datasets.ClassLabel(names=names))}
    features = datasets.Features({"image": datasets.Image(), "objects": kinds})
    return datasets.Dataset.from_dict({"image": PICTURES[: len(boxes)], "objects": objects}, features)

"""CIFAR-10 and CIFAR-100 in memory, halves of their classes, and the models that are trained on them."""

import io
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import hf_zipit.cifar_resnet
import hf_zipit.cifar_vgg  # noqa: F401  (both register their model with timm)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": ("cifar_resnet20", {}),
    "vgg11": ("cifar_vgg11", {}),
    "vgg11_bn": ("cifar_vgg11", {"batch_norm": True}),
}


def read(data: str, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """The images `(images, 3, 32, 32)` of one split as uint8, their labels, and the class names.

    Args:
        data: a Hub id or a folder of parquet files, with an image column and a label column.
    """
    import datasets

    rows = datasets.load_dataset(data, split=split)
    image = next(name for name in rows.column_names if name in ("image", "img"))
    label = next(name for name in rows.column_names if name in ("label", "fine_label"))
    pixels = torch.empty(len(rows), 3, 32, 32, dtype=torch.uint8)
    for i, encoded in enumerate(rows.cast_column(image, datasets.Image(decode=False))[image]):
        picture = Image.open(io.BytesIO(encoded["bytes"])).convert("RGB")
        pixels[i] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    return pixels, torch.tensor(list(rows[label])), rows.features[label].names


def halves(classes: int, seed: int) -> tuple[list[int], list[int]]:
    """The classes, shuffled and cut in two."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: classes // 2]), sorted(order[classes // 2 :])


def only(classes: list[int], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images of some classes, labelled by the class's place among them."""
    place = torch.full((int(labels.max()) + 1,), -1)
    place[classes] = torch.arange(len(classes))
    kept = place[labels] >= 0
    return images[kept], place[labels[kept]]


def build(name: str, width: float, names: list[str], seed: int) -> nn.Module:
    """An untrained classifier; the seed decides its weights, those of the classifier last."""
    torch.manual_seed(seed)
    if name != "vit":
        architecture, args = MODELS[name]
        width = int(width) if width == int(width) else width
        return timm.create_model(architecture, num_classes=len(names), width=width, **args)
    size = int(96 * width)
    config = ViTConfig(
        hidden_size=size,
        num_hidden_layers=4,
        num_attention_heads=size // 32,
        intermediate_size=4 * size,
        image_size=32,
        patch_size=4,
        id2label=dict(enumerate(names)),
        label2id={label: i for i, label in enumerate(names)},
    )
    return ViTForImageClassification._from_config(config, attn_implementation="eager")  # the faster one on a CPU


def save(model: Any, out: Path, names: list[str]) -> None:
    """Write the model as a folder in its library's Hub format."""
    if isinstance(model, ViTForImageClassification):
        model.save_pretrained(out)
        size = {"height": 32, "width": 32}
        ViTImageProcessor(do_resize=True, size=size, image_mean=MEAN, image_std=STD).save_pretrained(out)
        return
    model.pretrained_cfg.update(mean=MEAN, std=STD, input_size=(3, 32, 32))
    config = {"label_names": names}
    save_for_hf(model, out, model_config=config, model_args=model.model_args, safe_serialization=True)

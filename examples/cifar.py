"""CIFAR-10 and CIFAR-100 in memory, splits of their classes, and the models trained on them."""

import io
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from training import logits_of
from transformers import (
    AutoTokenizer,
    CLIPTextModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_zipit.models.cifar_resnet
import hf_zipit.models.cifar_vgg  # noqa: F401  (both register their model with timm)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": ("cifar_resnet20", {}),
    "resnet18": ("cifar_resnet20", {"depth": 18, "stages": 4}),  # of the usual width with --width 4
    "vgg11": ("cifar_vgg11", {}),
    "vgg11_bn": ("cifar_vgg11", {"batch_norm": True}),
}


def read(data: str, split: str) -> tuple[Tensor, Tensor, list[str]]:
    """Read one split: images `(N, 3, 32, 32)` as uint8, labels `(N,)`, and class names.

    Args:
        data: Hub id or folder of parquet files with an image and a label column.
        split: `train` or `test`.
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


def class_count(data: str) -> int:
    """The number of classes of a data set, as for `read`."""
    import datasets

    features = datasets.load_dataset(data, split="test").features
    return len(next(features[name] for name in ("label", "fine_label") if name in features).names)


def halves(classes: int, split: str) -> tuple[list[int], list[int]]:
    """Split the classes into two halves: `even` and odd ones, or at random, by a seed."""
    if split == "even":
        return list(range(0, classes, 2)), list(range(1, classes, 2))
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(int(split))).tolist()
    return sorted(order[: classes // 2]), sorted(order[classes // 2 :])


def only(classes: list[int], images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The images of the given classes, labelled by index into `classes`."""
    place = torch.full((int(labels.max()) + 1,), -1)
    place[classes] = torch.arange(len(classes))
    kept = place[labels] >= 0
    return images[kept], place[labels[kept]]


def build(name: str, width: float, names: list[str] | int, seed: int) -> Any:
    """An untrained model, with class names or a number of outputs; the seed determines its weights."""
    torch.manual_seed(seed)
    names = [str(i) for i in range(names)] if isinstance(names, int) else names
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
    return ViTForImageClassification._from_config(config, attn_implementation="eager")  # faster than sdpa on a CPU


def class_vectors(names: list[str], targets: str) -> Tensor | None:
    """A unit vector for each class, `(classes, dimension)`; `None` for targets that are labels.

    Args:
        names: All classes of the data set.
        targets: `labels`; `codes` for random orthogonal vectors, equal in every run; or the folder or Hub id of a CLIP
            model, for its text features of "a photo of a ...".
    """
    if targets == "labels":
        return None
    if targets == "codes":
        random = torch.randn(len(names), max(64, len(names)), generator=torch.Generator().manual_seed(0))
        return torch.linalg.qr(random.T).Q.T.contiguous()
    encoder, tokenizer = CLIPTextModelWithProjection.from_pretrained(targets), AutoTokenizer.from_pretrained(targets)
    texts = tokenizer([f"a photo of a {name.replace('_', ' ')}" for name in names], padding=True, return_tensors="pt")
    with torch.no_grad():
        return nn.functional.normalize(encoder(**texts).text_embeds, dim=-1)


class Towards(nn.Module):
    """A classifier by cosine similarity between a model's output and class vectors (ZipIt!, section 5.1)."""

    def __init__(self, model: Any, vectors: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("vectors", vectors)

    def forward(self, pixels: Tensor) -> Tensor:
        """Cosine to every class vector, times 100 as in CLIP if the class vectors are close together, else 16."""
        output = nn.functional.normalize(logits_of(self.model(pixels)).float(), dim=-1)
        close = (self.vectors @ self.vectors.T).mean() > 0.5
        return (100 if close else 16) * output @ self.vectors.T

    def folded(self, names: list[str]) -> Any:
        """The model as a plain classifier: class vectors folded into its linear layer, without normalisation."""
        vit = isinstance(self.model, ViTForImageClassification)
        old = self.model.classifier if vit else self.model.get_classifier()
        new = nn.Linear(old.in_features, len(names))
        new.weight.data, new.bias.data = self.vectors @ old.weight.data, self.vectors @ old.bias.data
        if vit:
            self.model.classifier, self.model.num_labels = new, len(names)
            self.model.config.id2label = dict(enumerate(names))
            self.model.config.label2id = {label: i for i, label in enumerate(names)}
        else:
            self.model.reset_classifier(len(names))
            self.model.get_classifier().load_state_dict(new.state_dict())
        return self.model


def save(model: Any, out: Path, names: list[str]) -> None:
    """Save the model to a folder in the Hub format of its library."""
    if isinstance(model, ViTForImageClassification):
        model.save_pretrained(out)
        size = {"height": 32, "width": 32}
        ViTImageProcessor(do_resize=True, size=size, image_mean=MEAN, image_std=STD).save_pretrained(out)
        return
    model.pretrained_cfg.update(mean=MEAN, std=STD, input_size=(3, 32, 32))
    config = {"label_names": names}
    save_for_hf(model, out, model_config=config, model_args=model.model_args, safe_serialization=True)

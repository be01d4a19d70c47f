"""What every case starts from: tiny parents of several kinds, images, and merges. It is only read."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import timm
import transformers
from PIL import Image

import hf_zipit
from hf_zipit.saving.save import save
from tests.helpers.models import randomise

SIDE = 16
CLASSES = ("ape", "bee", "cat")
COUNT = 6  # images in the folder `data`


@dataclass(frozen=True)
class World:
    """Folders, by what they hold.

    Attributes:
        families: pairs of parents that can be merged, the first with two classes and the second with three.
        data: a folder with a folder of images for each class.
        merges: saved merges, each with its parents.
    """

    home: Path
    families: dict[str, tuple[Path, Path]]
    data: Path
    merges: dict[str, tuple[Path, tuple[Path, Path]]]

    def family(self, rng: Random) -> tuple[str, tuple[Path, Path]]:
        """A pair of parents with its name; the models that are fast to build are chosen more often."""
        name = rng.choice(("vit", "vit", "vit", "timm-vit", "timm-vit", "timm-vit", "timm-resnet", "resnet", "resnet"))
        return name, self.families[name]


def build(home: Path) -> World:
    """Make everything in an empty folder."""
    families = {}
    for name, make in (("timm-resnet", _timm_resnet), ("timm-vit", _timm_vit), ("vit", _vit), ("resnet", _resnet)):
        families[name] = (home / f"{name}-a", home / f"{name}-b")
        for seed, folder in enumerate(families[name]):
            make(folder, seed, CLASSES[: 2 + seed])
    data = home / "data"
    write_images(data, CLASSES[:2], COUNT // 2)
    merges = {}
    for name, family, cut in (
        ("full", "timm-resnet", None),
        ("partial", "timm-resnet", "layer1"),
        ("full-vit", "vit", None),
        ("partial-vit", "vit", "vit.embeddings"),
    ):
        merged = hf_zipit.merge(families[family], data, cut=cut)
        merges[name] = (save(merged, home / name), families[family])
    return World(home, families, data, merges)


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """A small picture of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def write_images(folder: Path, classes: tuple[str, ...], each: int) -> None:
    """Write pictures, the same number for every class."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            picture(number * 100 + i).save(folder / name / f"{i}.png")


def _save_timm(model: timm.models.ResNet, folder: Path, seed: int, classes: tuple[str, ...], args: dict) -> None:
    randomise(model.eval(), seed)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
    labels = {"label_names": list(classes)}
    timm.models.save_for_hf(model, folder, model_config=labels, model_args=args, safe_serialization=True)


def _timm_resnet(folder: Path, seed: int, classes: tuple[str, ...]) -> None:
    args = {"channels": [4, 4, 4, 4], "layers": [1, 1, 1, 1]}
    _save_timm(timm.create_model("resnet18", num_classes=len(classes), **args), folder, seed, classes, args)


def _timm_vit(folder: Path, seed: int, classes: tuple[str, ...]) -> None:
    args = {"img_size": SIDE, "patch_size": 8, "embed_dim": 8, "num_heads": 2, "depth": 1}
    _save_timm(timm.create_model("vit_tiny_patch16_224", num_classes=len(classes), **args), folder, seed, classes, args)


def _labels(classes: tuple[str, ...]) -> dict:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def _vit(folder: Path, seed: int, classes: tuple[str, ...]) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, **_labels(classes))
    randomise(transformers.ViTForImageClassification(config).eval(), seed).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def _resnet(folder: Path, seed: int, classes: tuple[str, ...]) -> None:
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(**sizes, **_labels(classes))
    randomise(transformers.ResNetForImageClassification(config).eval(), seed).save_pretrained(folder)
    transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=1.0).save_pretrained(folder)


def read(file: Path) -> dict:
    """The mapping in a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))

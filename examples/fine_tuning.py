"""Shared code of the fine-grained examples: splits as `datasets.Dataset`, and fine-tuning of a model from the Hub.

Models from timm and transformers are fine-tuned in the same way: new classifier, random crops, one-cycle schedule. All
use the same preprocessing, so that they can be merged.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
from timm.models import save_for_hf
from torch.utils.data import DataLoader
from torchvision import transforms
from training import fit, logits_of
from transformers import AutoImageProcessor, AutoModelForImageClassification

import hf_zipit.models.cifar_resnet  # noqa: F401  (registers cifar_resnet20 with timm)
from hf_zipit.sources.load import load_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        name: Name of the task.
        original: Reads the original files: (folder, `train` or `test`) -> rows with an image and a label. Raises
            `FileNotFoundError` if the files are not in the folder.
        hub: Hub id of a copy, if there is one.
        base: Pretrained model to start from.
    """

    name: str
    original: Callable[[Path, str], datasets.Dataset]
    hub: str | None
    base: str

    def split(self, data: str, split: str) -> datasets.Dataset:
        """Load the `train` or `test` split from a folder or Hub id."""
        if Path(data).is_dir():
            try:
                return self.original(Path(data), split)
            except FileNotFoundError:
                pass  # not the original files: parquet files or an image folder
        return from_library(data, split)


def from_library(data: str, split: str) -> datasets.Dataset:
    """Load a split of any data set that `datasets` can read, as columns `image` and `label`."""
    rows = datasets.load_dataset(data)
    rows = rows[split] if split in rows else rows["validation"]
    label = next(name for name in ("label", "labels", "target") if name in rows.column_names)
    rows = rows.select_columns(["image", label])
    rows = rows if label == "label" else rows.rename_column(label, "label")
    return rows if isinstance(rows.features["label"], datasets.ClassLabel) else rows.class_encode_column("label")


def listed(paths: Sequence[Path], labels: Sequence[int], names: Sequence[str]) -> datasets.Dataset:
    """A data set of image files and labels; files are read on access."""
    for path in paths:
        if not path.is_file():
            raise SystemExit(f"{path} is listed but missing; unpack all archives of the data set into one folder")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"image": [str(p) for p in paths], "label": list(labels)}, features=features)


def classifier(base: str, names: Sequence[str], size: int) -> tuple[Any, Any]:
    """A pretrained model with a new classifier, and its image processor if it is a transformers model.

    Args:
        base: Folder, Hub id, or name of a timm model with pretrained weights.
        names: Class names.
        size: Height and width of the images in pixels.
    """
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    config = {"architecture": base} if timm.is_model(base) else _config(base)
    if "architecture" not in config:
        model = AutoModelForImageClassification.from_pretrained(base, ignore_mismatched_sizes=True, **labels)
        return model, AutoImageProcessor.from_pretrained(base, size={"height": size, "width": size})
    args = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    where = "" if timm.is_model(base) else "local-dir:" if Path(base).is_dir() else "hf-hub:"
    model = timm.create_model(where + base, pretrained=True, num_classes=len(names))
    model.model_args = args
    model.pretrained_cfg.update(mean=MEAN, std=STD, crop_pct=0.875, interpolation="bilinear", crop_mode="center")
    model.pretrained_cfg.update(input_size=(3, size, size), label_names=list(names))
    return model, None


def _config(base: str) -> dict[str, Any]:
    """Read the `config.json` of a folder or Hub id."""
    from huggingface_hub import hf_hub_download

    path = Path(base) / "config.json" if Path(base).is_dir() else hf_hub_download(base, "config.json")
    return json.loads(Path(path).read_text(encoding="utf-8"))


def fine_tune(task: Task, data: str, out: Path, args: argparse.Namespace) -> Path:
    """Fine-tune a model on one data set and save it in the Hub format of its library.

    Args:
        task: The data set.
        data: Its folder or Hub id.
        out: Output folder. If it already contains a model, nothing is trained.
        args: Training options (see `training_arguments`).
    """
    if (out / "model.safetensors").exists():
        return out
    rows = task.split(data, "train")
    rows = rows.shuffle(seed=0).select(range(args.train_images)) if args.train_images else rows
    names = rows.features["label"].names
    model, processor = classifier(args.base or task.base, names, args.image_size)
    mean, std = (processor.image_mean, processor.image_std) if processor else (MEAN, STD)
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.image_size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )

    def collate(batch: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.stack([augment(row["image"].convert("RGB")) for row in batch])
        return pixels, torch.tensor([row["label"] for row in batch])

    batches = DataLoader(rows, args.batch_size, shuffle=True, collate_fn=collate, num_workers=args.workers)
    fit(model, batches, epochs=args.epochs, lr=args.lr, optimiser="adamw", bf16=args.bf16, name=task.name)
    if processor:
        model.save_pretrained(out)
        processor.save_pretrained(out)
    else:
        config = {"label_names": list(names)}
        save_for_hf(model, out, model_config=config, model_args=model.model_args, safe_serialization=True)
    return out


@torch.inference_mode()
def accuracy(folder: Path, rows: datasets.Dataset, batch_size: int = 64) -> float:
    """Accuracy of the model in `folder`, in [0, 1]."""
    source = load_source(folder)
    hits = 0
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        pixels = torch.stack([source.transform(image.convert("RGB")) for image in batch["image"]])
        hits += int((logits_of(source.model.eval()(pixels)).argmax(-1) == torch.tensor(batch["label"])).sum())
    return hits / len(rows)


def push(folder: Path, repository: str) -> None:
    """Upload a folder to a private Hub repository."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)


def training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the fine-tuning options to a parser."""
    parser.add_argument("--base", help="Hub id, folder or timm name of the pretrained model")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--train-images", type=int, help="number of training images, for a quick test; default: all")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--workers", type=int, default=0, help="processes for image decoding")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")


def main(task: Task, description: str) -> None:
    """Command line for one data set: fine-tune, print the test accuracy, and upload on request."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = {"nargs": "?", "default": task.hub} if task.hub else {}
    parser.add_argument(
        "data", help="folder with the original files, Hub id, or any folder that `datasets` can read", **default
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder of the model")
    parser.add_argument("--push", metavar="USER/NAME", help="upload the model to this repository")
    training_arguments(parser)
    args = parser.parse_args()
    fine_tune(task, args.data, args.out, args)
    rows = task.split(args.data, "test")
    print(f"{task.name}: {100 * accuracy(args.out, rows):.1f} % of {len(rows)} test images, {args.out}")
    if args.push:
        push(args.out, args.push)

"""Merge two object detectors into one trunk, on digits at random places.

    python examples/detection.py [--backgrounds DATA] [--steps 1000] [--out FOLDER]

Both detectors are small YOLOS. They come from one base, which was trained to find digits of any kind; one was then
trained to find and name the digits 0-2, the other 5-7. Each image shows one of a task's digits, from
scikit-learn, in a random size and colours on a random texture, or on the images in `--backgrounds` (an image folder,
parquet files or a Hub id). They are merged up to two cuts, without labels, and measured by mean average precision on
digits that no model has seen. The controls are the trunks of the parents, with the same refit. Needs
`pip install 'hf-zipit[detection,examples]'`, and takes about six minutes of one core.
"""

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import torch
from digits_data import digits
from PIL import Image
from torch import nn
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

from hf_zipit.data.images import open_images
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.evaluation.results import Result
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source
from hf_zipit.text import table

SIZE, BATCH = 48, 16
TASKS = {"low": range(3), "high": range(5, 8)}
CUTS = ("vit.encoder.layer.2", "vit.encoder.layer.1")
DIGITS = 1  # in an image
SCENES = 3000  # for the training of each model
MERGES = {  # row name: method and calibration
    "average": ("average", "none"),
    "average, refit": ("average", "refit"),
    "select, refit": ("select", "refit"),
    "control: trunk of low, refit": ("first-parent", "refit"),
    "control: trunk of high, refit": ("last-parent", "refit"),
}
Scene = tuple[Image.Image, list[list[float]], list[int]]  # an image, boxes (left, top, width, height), digits
Background = Callable[[np.random.Generator], np.ndarray]  # draws `(SIZE, SIZE, 3)`, values from 0 to 255


def texture(draw: np.random.Generator) -> np.ndarray:
    """A smooth texture of random colours, with some noise."""
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=float)
    return 0.6 * smooth + draw.normal(0, 8, (SIZE, SIZE, 3))


def photographs(data: str) -> Background:
    """Random images of a data set as backgrounds, a little darker than they are."""

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((SIZE, SIZE)), dtype=np.float32)).movedim(-1, 0)

    images = open_images(data, pixels)
    return lambda draw: 0.6 * images[int(draw.integers(len(images)))].movedim(0, -1).double().numpy()


def scene(split: list[tuple[Image.Image, int]], draw: np.random.Generator, background: Background) -> Scene:
    """Digits at random places where they do not overlap."""
    canvas, boxes, names = background(draw), [], []
    for _ in range(DIGITS):
        image, label = split[draw.integers(len(split))]
        side = int(draw.integers(16, 23))
        left, top = (int(place) for place in draw.integers(0, SIZE - side, 2))
        if any(abs(left - x) < max(side, w) and abs(top - y) < max(side, w) for x, y, w, _ in boxes):
            continue
        ink = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), dtype=float)[..., None] / 255
        part = canvas[top : top + side, left : left + side]
        part[:] = (1 - ink) * part + ink * draw.integers(190, 256, 3)
        rows, columns = (np.flatnonzero(ink[..., 0].max(axis) > 0.3) for axis in (1, 0))  # the ink, without its margin
        x, y = left + columns[0], top + rows[0]
        boxes.append([float(x), float(y), float(np.ptp(columns) + 1), float(np.ptp(rows) + 1)])
        names.append(label)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8)), boxes, names


def data_set(task: str, split: str, background: Background, count: int) -> datasets.Dataset:
    """Images with a column `objects`, as detection data sets on the Hub have it."""
    labels = [str(digit) for digit in TASKS[task]]
    draw = np.random.default_rng([*map(ord, task + split)])
    held = [(image, digit) for image, digit in digits(split) if digit in TASKS[task]]
    rows: dict[str, list] = {"image": [], "objects": []}
    for _ in range(count):
        image, boxes, names = scene(held, draw, background)
        rows["image"].append(image)
        rows["objects"].append({"bbox": boxes, "category": [labels.index(str(name)) for name in names]})
    box = datasets.List(datasets.Value("float32"))
    objects = {"bbox": datasets.List(box), "category": datasets.List(datasets.ClassLabel(names=labels))}
    return datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image(), "objects": objects}))


def train(
    model: nn.Module, wanted: range, classes: dict[int, int], background: Background, steps: int, seed: int
) -> nn.Module:
    """Train a detector on scenes with some of the digits; `classes` are the numbers of their classes."""
    draw = np.random.default_rng(seed)
    held = [(image, digit) for image, digit in digits("train") if digit in wanted]
    scenes = [scene(held, draw, background) for _ in range(SCENES)]
    processor = image_processor()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    rate = lambda step: min(1, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    model.train()
    for step in range(steps):
        images, boxes, names = zip(*(scenes[i] for i in draw.integers(len(scenes), size=BATCH)), strict=True)
        targets = []
        for mine, digits_there in zip(boxes, names, strict=True):
            corner, extent = torch.tensor(mine).split(2, 1)
            targets.append(
                {
                    "boxes": torch.cat([corner + extent / 2, extent], 1) / SIZE,
                    "class_labels": torch.tensor([classes[digit] for digit in digits_there]),
                }
            )
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        loss = model(pixel_values=pixels, labels=targets).loss
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss.detach()):.2f}", flush=True)
    return model.eval()


def image_processor() -> YolosImageProcessor:
    """What prepares the images of all models."""
    return YolosImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_pad=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def detector(names: list[str]) -> YolosForObjectDetection:
    """A small YOLOS without positions between its layers, so that it can be cut after each of them."""
    config = YolosConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=[SIZE, SIZE],
        patch_size=8,
        num_detection_tokens=3,
        use_mid_position_embeddings=False,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    model = YolosForObjectDetection(config)
    side, quarter = SIZE // 8, 64 // 4
    angles = torch.arange(side)[:, None] / 2 ** torch.linspace(0, 4, quarter)
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # (side, 32)
    down, right = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    with torch.no_grad():  # transformers begins with zeros, of which no detection token differs from another
        for tokens in (model.vit.embeddings.detection_tokens, model.vit.embeddings.position_embeddings):
            tokens.normal_()
        model.vit.embeddings.position_embeddings[0, 1 : 1 + side**2] = torch.cat([down, right], 2).flatten(0, 1)
    return model


def parents(folder: Path, background: Background, steps: int) -> list[Path]:
    """Train the base and one detector per task, and save them."""
    torch.manual_seed(0)
    places = []
    if not (folder / "base" / "config.json").is_file():
        base = train(detector(["digit"]), range(10), dict.fromkeys(range(10), 0), background, steps, 0)
        base.save_pretrained(folder / "base")
    known = YolosForObjectDetection.from_pretrained(folder / "base").state_dict()
    for number, (task, wanted) in enumerate(TASKS.items(), 1):
        places.append(folder / task)
        if (folder / task / "config.json").is_file():
            continue
        model = detector([str(digit) for digit in wanted])
        fresh = model.state_dict()
        model.load_state_dict({k: known[k] if known[k].shape == v.shape else v for k, v in fresh.items()})
        classes = {digit: place for place, digit in enumerate(wanted)}
        train(model, wanted, classes, background, steps, number).save_pretrained(folder / task)
        image_processor().save_pretrained(folder / task)
    return places


def line(name: str, row: Result, unit: int) -> list[str]:
    """One row of the table; `-` for tasks that the model does not have."""
    found = [row.scores.get(task, {}).get(metric) for task in TASKS for metric in ("mAP", "mAP50")]
    cost = [f"{row.flops / unit:.2f}x", f"{row.parameters / 1e3:.0f}"]
    return [name, *("-" if value is None else f"{100 * value:.1f}" for value in found), *cost]


def main(backgrounds: str | None, steps: int, count: int, out: Path) -> None:
    """Train the detectors, merge them at every cut, and print the table."""
    background = texture if backgrounds is None else photographs(backgrounds)
    sources = [load_source(place) for place in parents(out, background, steps)]
    train_sets = [data_set(task, "train", background, count).remove_columns("objects") for task in TASKS]
    test_sets = [data_set(task, "test", background, count) for task in TASKS]
    merger = Merger(sources, train_sets, cache=False)
    rows: list[tuple[str, Result]] = []
    for cut in CUTS:
        for name, (method, calibrate) in MERGES.items():
            merged = merger.merge(method=method, cut=cut, calibrate=calibrate)
            first, *alone = evaluate(merged, test_sets, parents=[] if rows else sources)
            rows += [(row.model, row) for row in reversed(alone)]
            rows.append((f"{cut.removeprefix('vit.encoder.')}: {name}", first))
    unit = rows[1][1].flops
    header = [
        "trunk up to",
        *(f"{task} {metric}" for task in TASKS for metric in ("mAP", "mAP50")),
        "FLOPs",
        "K params",
    ]
    print(table(header, [line(name, row, unit) for name, row in rows]))
    picture = test_sets[0][0]["image"]
    print("boxes of all tasks in one image:", *merged.detect(picture)[0], sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", help="Image folder, parquet files or Hub id; default: textures.")
    parser.add_argument("--steps", type=int, default=1000, help="of the training of each model")
    parser.add_argument("--images", type=int, default=300, help="for merging, and for testing, of each task")
    parser.add_argument("--out", type=Path, help="Folder for the models; those in it are not trained again.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(arguments.backgrounds, arguments.steps, arguments.images, arguments.out or Path(place))

"""Merge a classifier and a segmentation model into one trunk, on digits in front of a background.

    python examples/segmentation_and_classification.py [--backgrounds DATA] [--epochs 30]

The classifier is a ResNet-8. The segmentation model has a ResNet-8 encoder, trained from another initialisation, and a
decoder that reads all of its stages. They are merged up to each stage in turn (ZipIt!, "Merging models with different
output modalities"). The images are scikit-learn's digits, whose foreground is known, on black or on the images in
`--backgrounds` (an image folder, parquet files or a Hub id). The controls are a random match and the trunk of one
parent, with the same refit. Takes about three minutes on one core.
"""

import argparse

import timm
import torch
from digits_data import digits
from torch import Tensor, nn

import hf_zipit
import hf_zipit.models.cifar_resnet
from hf_zipit.data.images import TRAIN, open_images
from hf_zipit.data.rows import TEST
from hf_zipit.evaluation.evaluate import evaluate_tasks
from hf_zipit.evaluation.results import Result
from hf_zipit.merging.merger import Merger
from hf_zipit.text import table

SIZE, BATCH = 16, 32
MERGED = 640  # training images used for merging
TRANSFORM = timm.data.create_transform((3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)
CUTS = ("layer1", "layer2", "layer3")
MERGES = {  # row name: method and calibration
    "average": ("average", "batchnorm"),
    "permute": ("permute", "batchnorm"),
    "zip": ("zip", "batchnorm"),
    "zip, refit": ("zip", "refit"),
    "control: random match, refit": ("random", "refit"),
    "control: the classifier's trunk, refit": ("first-parent", "refit"),
    "control: the segmenter's trunk, refit": ("last-parent", "refit"),
}


class Segmenter(nn.Module):
    """A ResNet-8 encoder, and a decoder that sums its stages to logits of background and foreground."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("cifar_resnet20", depth=8, num_classes=0, global_pool="")
        self.lateral = nn.ModuleList(nn.Conv2d(channels, 16, 1) for channels in (16, 16, 32, 64))
        self.head = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels `(B, 3, H, W)` -> `(B, 2, H, W)`."""
        net, size = self.encoder, x.shape[2:]
        stages = [net.act1(net.bn1(net.conv1(x)))]
        for stage in (net.layer1, net.layer2, net.layer3):
            stages.append(stage(stages[-1]))
        maps = [conv(stage) for conv, stage in zip(self.lateral, stages, strict=True)]
        total = sum(nn.functional.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps)
        out: Tensor = self.head(total)
        return out


def load(split: str, backgrounds: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Load a split: pixels `(N, 3, 16, 16)` in [-1, 1], labels `(N,)` and foreground masks `(N, 16, 16)`."""
    pixels, labels = zip(*digits(split), strict=True)
    images = torch.stack([TRANSFORM(image.convert("RGB")) for image in pixels])
    masks = (images.mean(1) > 0).long()
    if backgrounds is not None:
        found = open_images(backgrounds, TRANSFORM, splits=TRAIN if split == "train" else TEST)
        scene = torch.stack([found[i % len(found)] for i in range(len(images))])
        share = (images + 1) / 2
        images = share * images + (1 - share) * scene
    return images, torch.tensor(labels), masks


def train(model: nn.Module, images: Tensor, targets: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train one model on cross-entropy per image or pixel, with random shifts as augmentation."""
    steps = epochs * -(-len(images) // BATCH)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps)
    torch.manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            shift = torch.randint(-3, 4, (2,)).tolist()
            target = targets[batch].roll(shift, (1, 2)) if targets.ndim == 3 else targets[batch]
            loss = nn.functional.cross_entropy(model(images[batch].roll(shift, (2, 3))), target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def line(name: str, row: Result, unit: int) -> list[str]:
    """One row of the table; `-` for tasks that the model does not have."""
    classes, masks = row.scores.get("digits", {}), row.scores.get("foreground", {})
    shown = [classes.get("accuracy"), masks.get("mIoU"), masks.get("pixel accuracy")]
    cost = [f"{row.flops / unit:.2f}x", f"{row.parameters / 1e3:.0f}"]
    return [name, *("-" if value is None else f"{100 * value:.1f}" for value in shown), *cost]


def main(backgrounds: str | None, epochs: int) -> None:
    """Train both models, merge them at every cut, and print the table."""
    images, labels, masks = load("train", backgrounds)
    torch.manual_seed(0)
    classifier = train(timm.create_model("cifar_resnet20", depth=8, num_classes=10), images, labels, epochs, 0)
    torch.manual_seed(1)
    segmenter = train(Segmenter(), images, masks, epochs, 1)
    size = (3, SIZE, SIZE)
    sources = [
        hf_zipit.module_source(
            classifier, "image-classification", name="digits", labels=[str(i) for i in range(10)], input_size=size
        ),
        hf_zipit.module_source(segmenter, "image-segmentation", name="foreground", input_size=size),
    ]
    test_images, test_labels, test_masks = load("test", backgrounds)
    pairs = [
        list(zip(test_images.split(BATCH), targets.split(BATCH), strict=True)) for targets in (test_labels, test_masks)
    ]
    merger = Merger(sources, images[:MERGED].split(BATCH), cache=False)
    rows, parents = [], []
    for cut in reversed(CUTS):
        for name, (method, calibrate) in MERGES.items():
            merged = merger.merge(method=method, cut=cut, calibrate=calibrate)
            first, *parents = evaluate_tasks(merged, pairs, parents=sources)
            rows.append((f"{cut}: {name}", first))
    rows += [(row.model, row) for row in reversed(parents)]
    unit = parents[0].flops
    header = ["trunk up to", "accuracy", "mIoU", "pixel accuracy", "FLOPs", "K params"]
    print(table(header, [line(name, row, unit) for name, row in rows]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", help="Image folder, parquet files or Hub id; default: black.")
    parser.add_argument("--epochs", type=int, default=30)
    arguments = parser.parse_args()
    main(arguments.backgrounds, arguments.epochs)

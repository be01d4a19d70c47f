"""Merge models for dense tasks pairwise, by every method: autoencoding, denoising, edges and colourisation.

    python examples/dense_tasks.py [--images DATA] [--epochs 6] [--cut layer3]

All four tasks need only images, no labels. `--images` is an image folder, parquet files or a Hub id; by default the
images are scikit-learn's digits, with one colour per digit. Small encoder-decoders are trained from different
initialisations. For each of the six pairs, the encoders are then merged, the decoders remain task-specific, and the
batch-norm statistics are re-estimated.

The table gives scaled performance (L0 - L) / (L0 - L1), averaged over a task's partners, as in MuDSC's Taskonomy
protocol: 1 is as good as the task's own model, 0 no better than the mean target. With `--cut layer2` each task keeps
its last stage. The controls are a random match and the trunk of one parent. Takes about six minutes on one core.
"""

import argparse
from collections.abc import Callable
from itertools import combinations

import timm
import torch
from digits_data import digits
from torch import Tensor, nn

import hf_zipit
import hf_zipit.models.cifar_resnet
from hf_zipit.data.images import TRAIN, open_images
from hf_zipit.data.rows import TEST
from hf_zipit.evaluation.evaluate import evaluate_tasks
from hf_zipit.evaluation.metrics import constant_estimator, scaled_performance
from hf_zipit.merging.merger import Merger
from hf_zipit.text import table

SIZE, BATCH = 16, 64
MERGED = 640  # training images used for merging
METHODS = ("average", "permute", "git-rebasin", "mudsc-align", "kmeans", "zip", "weight-zip", "mudsc-zip")
PARTNER = "control: the partner's trunk, refit"
MERGES = [  # row name, method, calibration
    *((method, method, "batchnorm") for method in METHODS),
    ("zip, refit", "zip", "refit"),
    ("control: random match", "random", "batchnorm"),
    ("control: random match, refit", "random", "refit"),
    (PARTNER, "first-parent", "refit"),
    (PARTNER, "last-parent", "refit"),
]
TRANSFORM = timm.data.create_transform((3, SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=1.0)


class EncoderDecoder(nn.Module):
    """A ResNet-8 and two upsampling stages."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = timm.create_model("cifar_resnet20", depth=8, num_classes=0, global_pool="")
        self.decoder = nn.Sequential(
            *(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            nn.Conv2d(16, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pixels `(B, 3, H, W)` -> `(B, channels, H, W)`."""
        out: Tensor = self.decoder(self.encoder(x))
        return out


def edges(x: Tensor) -> Tensor:
    """The magnitude of the grey image's Sobel gradient."""
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    gradient = nn.functional.conv2d(x.mean(1, keepdim=True), torch.stack([across, across.T])[:, None], padding=1)
    return gradient.square().sum(1, keepdim=True).sqrt()


def noisy(x: Tensor) -> Tensor:
    """The image plus noise with standard deviation 0.5, the same noise in every call."""
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


def grey(x: Tensor) -> Tensor:
    """The image in grey, with three channels."""
    return x.mean(1, keepdim=True).expand_as(x).contiguous()


TASKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {  # input and target from an image
    "autoencoding": (lambda x: x, lambda x: x),
    "denoising": (noisy, lambda x: x),
    "edges": (lambda x: x, edges),
    "colourisation": (grey, lambda x: x),
}


def tinted(split: str) -> Tensor:
    """The digits `(N, 3, 16, 16)`, with one colour per class."""
    pixels, labels = zip(*digits(split), strict=True)
    images = torch.stack([TRANSFORM(image.convert("RGB")) for image in pixels])
    hue = torch.tensor(labels)[:, None] * 0.628 + torch.tensor([0.0, 2.1, 4.2])
    return (images + 1) * (0.6 + 0.4 * hue.cos())[:, :, None, None] - 1


def load(data: str | None, split: str, count: int) -> Tensor:
    """Load the images of a split, `(N, 3, 16, 16)` in [-1, 1]."""
    if data is None:
        return tinted(split)
    images = open_images(data, TRANSFORM, splits=TRAIN if split == "train" else TEST)
    return torch.stack([images[i] for i in range(min(count, len(images)))])


def batches(task: str, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of inputs and targets of a task."""
    make_input, make_target = TASKS[task]
    return list(zip(make_input(images).split(BATCH), make_target(images).split(BATCH), strict=True))


def train(task: str, images: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train one model on the L1 loss of its task."""
    torch.manual_seed(seed)
    model = EncoderDecoder(TASKS[task][1](images[:1]).shape[1])
    steps = epochs * -(-len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for pixels, target in batches(task, images[torch.randperm(len(images))]):
            loss = (model(pixels) - target).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def main(data: str | None, epochs: int, count: int, cut: str) -> None:
    """Train the models, merge all pairs by all methods, and print losses and scaled performance."""
    train_images, test_images = load(data, "train", count), load(data, "test", count // 4)
    models = {task: train(task, train_images, epochs, seed) for seed, task in enumerate(TASKS)}
    tests = {task: batches(task, test_images) for task in TASKS}
    constants = {}
    for task, pairs in tests.items():
        targets = [target for _, target in pairs]
        for published in (False, True):
            guess = constant_estimator(targets, published)
            constants[task, published] = float(torch.cat([(t - guess).abs().flatten() for t in targets]).mean())
    found: dict[str, dict[str, list[float]]] = {name: {task: [] for task in TASKS} for name, _, _ in MERGES}
    alone = {}
    for pair in combinations(TASKS, 2):
        sources = [
            hf_zipit.module_source(models[task], "image-to-image", name=task, input_size=(3, SIZE, SIZE))
            for task in pair
        ]
        inputs = [[pixels for pixels, _ in batches(task, train_images[:MERGED])] for task in pair]
        merger = Merger(sources, inputs, cache=False)
        for name, method, calibrate in MERGES:
            merged = merger.merge(method=method, cut=cut, calibrate=calibrate)
            rows = evaluate_tasks(merged, [tests[task] for task in pair], parents=sources)
            alone |= {task: scores["L1"] for row in rows[1:] for task, scores in row.scores.items()}
            own = {"first-parent": pair[0], "last-parent": pair[1]}.get(method)
            for task, scores in rows[0].scores.items():
                found[name][task] += [scores["L1"]] if task != own else []
    cost = rows[0].flops / rows[-1].flops
    print(f"{len(train_images)} training images, {len(test_images)} test images, {epochs} epochs, cut {cut}")
    print(f"a merge of two costs {cost:.2f}x the FLOPs of both parents\n")
    rows = [["own model", *(f"{alone[task]:.4f}" for task in TASKS)]]
    for published, name in ((False, "mean target"), (True, "the same as published")):
        rows.append([name, *(f"{constants[task, published]:.4f}" for task in TASKS)])
    print(table(["L1 loss", *TASKS], rows))
    for published, name in ((False, "scaled performance"), (True, "with the published constant")):
        lines = []
        for merge, losses in found.items():
            values = [
                sum(scaled_performance(loss, alone[t], constants[t, published]) for loss in losses[t]) / len(losses[t])
                for t in TASKS
            ]
            lines.append([merge, *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}"])
        print("\n" + table([name, *TASKS, "mean"], lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="Image folder, parquet files or Hub id; default: the digits.")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--count", type=int, default=2000, help="Maximum number of training images.")
    parser.add_argument("--cut", default="layer3", help="Last merged stage: layer1, layer2 or layer3.")
    arguments = parser.parse_args()
    main(arguments.images, arguments.epochs, arguments.count, arguments.cut)

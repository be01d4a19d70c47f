"""PLeaS (Nasery et al., CVPR 2025) on CIFAR-10: even and odd classes, own heads and linear probes, beside ours.

    python benchmarks/papers/pleas.py [--quick | --gpu] [--cifar10 DIR] [--out DIR]

The paper's pairs are ResNet-50s for CUB, Pets, Dogs and NABirds, whose task average by linear probes is 74.9 for PLeaS,
68.5 for MuDSC and 66.9 for ZipIt!; compare the order of the rows, not their values. A linear probe is a logistic
regression on the features of the merge, fitted with labels: no other number here uses any.
"""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import rerun  # which also makes the examples importable
import torch
from cifar import MEAN, STD, halves, only, read
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from training import Pixels

from hf_zipit.evaluation.results import Result
from hf_zipit.merging.balance import merge_settled
from hf_zipit.merging.merger import Merger
from hf_zipit.text import table

PROBED = 10_000  # images to fit a probe to, at most
SETTINGS = [
    rerun.Setting(
        "CIFAR-10, even and odd classes, labels, own initialisations",
        "cifar10",
        rerun.Training(width=4),
        {},
        split="even",
    )
]


@torch.inference_mode()
def features(merged: Any, pixels: Tensor) -> Tensor:
    """The merged units that the classifiers of a merge of all layers read, `(images, units)`."""
    found: list[Tensor] = []
    reading = merged.unmerge[0] if len(merged.unmerge) else merged.trunk.get_classifier()
    handle = reading.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    for part in pixels.split(500):
        merged(part)
    handle.remove()
    units = torch.cat(found)
    return units.mean((2, 3)) if units.ndim == 4 else units


def probe(merged: Any, images: Mapping[str, tuple[Tensor, Tensor]], most: int) -> float:
    """Accuracy of a linear probe on the test images of one task."""
    read_of = {split: Pixels(*images[split], MEAN, STD, pad=0, flip=False) for split in images}
    chosen = {split: list(range(min(most, len(part)))) for split, part in read_of.items()}
    pixels = {split: part.__getitems__(chosen[split]) for split, part in read_of.items()}
    x = {split: features(merged, values).numpy() for split, (values, _) in pixels.items()}
    fitted = LogisticRegression(max_iter=1000).fit(x["train"], pixels["train"][1].numpy())
    return float(fitted.score(x["test"], pixels["test"][1].numpy()))


def probes(setting: rerun.Setting, run: rerun.Run) -> str:
    """A table of the task average by linear probes: mean over the pairs, for each merge of all layers."""
    data = run.data[setting.data]
    splits = {split: read(data, split) for split in ("train", "test")}
    tasks = [
        {split: only(classes, *found[:2]) for split, found in splits.items()}
        for classes in halves(len(splits["test"][2]), setting.split or "0")
    ]
    most = min(PROBED, 20 * run.scale.images)
    scores: dict[tuple[str, str], list[float]] = {}
    for number in range(run.scale.pairs):
        merger = Merger(rerun.parents_of(setting, run, number), data, tasks=["a", "b"], num_images=run.scale.images)
        for recipe in rerun.merges_of("pleas", setting, merger):
            merged, settled = merge_settled(merger, recipe)
            label = rerun.label_of(Result(recipe.method, 0, 0, settings=settled.decisions))
            average = fmean(probe(merged, images, most) for images in tasks)
            scores.setdefault((label, settled.calibrate), []).append(average)
    lines = [[*names, f"{100 * fmean(values):.1f}"] for names, values in scores.items()]
    return table(["merge", "calibrate", "linear probes"], lines)


if __name__ == "__main__":
    rerun.rerun("pleas", SETTINGS, __doc__)
    run = rerun.asked(__doc__, SETTINGS)
    for setting in SETTINGS:
        print(f"\nlinear probes: {setting.title}")
        print(probes(rerun.fitting(setting, run.scale), run))

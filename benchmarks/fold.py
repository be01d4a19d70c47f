"""Accuracy of one model made smaller, at several widths: folds beside controls and Torch-Pruning at the same FLOPs.

    python benchmarks/fold.py MODEL DATA [--widths 0.7 0.5 0.3] [--num-images 500] [--torch-pruning FOLDER]

MODEL is a classifier, and DATA a folder with train.parquet and test.parquet, of whose images those with a class of the
model are used. Labels are read for the accuracy alone. Torch-Pruning (pip install torch-pruning) is found in FOLDER, or
where Python finds packages; without it, its rows are left out. It prunes by the L1 norm of groups, with one ratio for
all layers but the classifier, which is searched such that the FLOPs are nearest to those of the fold.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.calibration.batchnorm import renew_norms
from hf_zipit.costs import Cost, cost_of
from hf_zipit.matching.method import Method
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging.merger import Merger
from hf_zipit.running import logits_of
from hf_zipit.sources.load import load_source
from hf_zipit.text import percent, si, table
from hf_zipit.transform.match import Match, check_sizes

RANDOM = "random units"
WAYS = (  # method, calibration, heads
    ("select", "refit", "auto"),
    ("select", "refit", "pair"),
    ("zip", "refit", "auto"),
    ("kmeans", "refit", "auto"),
    (RANDOM, "refit", "pair"),
    ("zip", "batchnorm", "auto"),
    ("kmeans", "batchnorm", "auto"),
    ("select", "batchnorm", "pair"),
    (RANDOM, "batchnorm", "pair"),
    ("zip", "repair", "auto"),
    ("weight-zip", "repair-weights", "auto"),
    ("weight-kmeans", "repair-weights", "auto"),
    ("weight-zip", "none", "auto"),
    ("weight-kmeans", "none", "auto"),
)


def random_units(similarity: Tensor, sizes: Sequence[int], *, keep: int | None = None) -> Match:
    """Keep random units, and merge every other one into the kept one that is most similar: a control for `select`."""
    sizes, keep = check_sizes(similarity, sizes, keep)
    chosen = torch.randperm(len(similarity), generator=torch.Generator().manual_seed(len(similarity)))[:keep]
    labels = similarity[:, chosen].argmax(1).cpu()
    labels[chosen] = torch.arange(keep)
    kept = torch.zeros(len(similarity), dtype=torch.bool)
    kept[chosen] = True
    return Match(labels, sizes, keep, kept=kept)


def images(data: Path, split: str, names: Sequence[str]) -> Dataset:
    """The images of a split whose class the model has, their labels numbered as in the model."""
    rows = load_dataset("parquet", data_files={split: str(data / f"{split}.parquet")}, split=split)
    known = rows.features["label"].names
    place = {known.index(name): number for number, name in enumerate(names)}
    rows = rows.filter(place.__contains__, input_columns="label")
    return rows.add_column("number", [place[label] for label in rows["label"]])


@torch.no_grad()
def answers(model: nn.Module, pixels: Tensor) -> Tensor:
    """The answer of a classifier on every image."""
    model = copy.deepcopy(model).eval()
    return torch.cat([logits_of(model(part)).argmax(1) for part in pixels.split(100)])


def pruned(model: nn.Module, size: Sequence[int], ratio: float) -> nn.Module:
    """A copy pruned by Torch-Pruning: the units of every layer with the smallest group L1 norm are removed."""
    import torch_pruning

    net = copy.deepcopy(model).eval()
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    heads = {
        module: attention.num_attention_heads
        for attention in net.modules()
        if hasattr(attention, "num_attention_heads")
        for module in attention.modules()
        if isinstance(module, nn.Linear)
    }
    pruner = torch_pruning.pruner.BasePruner(
        net,
        torch.zeros(1, *size),
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=ratio,
        ignored_layers=[last],
        num_heads=heads,
        output_transform=logits_of,
    )
    pruner.step()
    for attention in net.modules():  # the factor on the logits stays, as units are removed from their sum
        if hasattr(attention, "num_attention_heads"):
            linear = next(module for module in attention.modules() if isinstance(module, nn.Linear))
            attention.head_dim = linear.out_features // attention.num_attention_heads
    return net


def as_expensive(prune: Callable[[float], nn.Module], size: Sequence[int], flops: float) -> nn.Module:
    """The pruned model whose FLOPs are nearest to a number."""
    low, high = 0.0, 0.95
    found: dict[float, nn.Module] = {}
    for _ in range(8):
        ratio = (low + high) / 2
        net = prune(ratio)
        cost = cost_of(net, size).flops
        found[abs(cost - flops)] = net
        low, high = (ratio, high) if cost > flops else (low, ratio)
    return found[min(found)]


class Report:
    """Rows of the table: a model, beside the one that it was made of."""

    def __init__(self, model: nn.Module, size: Sequence[int], pixels: Tensor, labels: Tensor) -> None:
        self.size = size
        self.pixels = pixels
        self.labels = labels
        self.cost: Cost = cost_of(model, size)
        self.own = answers(model, pixels)
        self.rows: list[list[str]] = []
        self.add("", "the model", model, None)

    def add(self, width: str, name: str, model: nn.Module, seconds: float | None) -> None:
        """Measure a model."""
        cost = cost_of(model, self.size)
        found = answers(model, self.pixels)
        shares = [(found == other).double().mean().item() for other in (self.labels, self.own)]
        times = f"{cost.flops / self.cost.flops:.2f}"
        spent = "" if seconds is None else f"{seconds:.0f}"
        self.rows.append([width, name, *map(percent, shares), times, si(cost.parameters), spent])
        print(" ".join(self.rows[-1]), file=sys.stderr, flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--widths", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--test-images", type=int, default=5000)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--methods", nargs="+", default=[RANDOM, *METHODS])
    parser.add_argument("--torch-pruning", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    METHODS[RANDOM] = Method(random_units, "keep random units", activations=True, within=True, sized=True, control=True)
    sys.path += [str(options.torch_pruning)] if options.torch_pruning else []
    source = load_source(options.model)
    train, test = (images(options.data, split, source.labels) for split in ("train", "test"))
    test = test.select(range(min(options.test_images, len(test))))
    pixels = torch.stack([source.transform(image.convert("RGB")) for image in test["image"]])
    report = Report(source.model, source.input_size, pixels, torch.tensor(test["number"]))
    merger = Merger([source], train, num_images=options.num_images, verdict=False, cache=False)
    normed = any(isinstance(module, nn.BatchNorm2d) for module in source.model.modules())
    attends = bool(merger.merge(method="select", width=0.5, calibrate="none").config.attributes)
    for width in options.widths:
        spent = 0.0
        for method, calibrate, heads in WAYS:
            if method not in options.methods or (calibrate == "batchnorm" and not normed):
                continue
            if method == "select" and heads == "pair" and calibrate == "refit" and not attends:
                continue
            start = time.perf_counter()
            alpha = {"alpha": options.alpha} if method.endswith("zip") else {}
            net = merger.merge(method=method, calibrate=calibrate, heads=heads, width=width, **alpha)
            spent = spent or cost_of(net, source.input_size).flops
            whole = ", whole heads" if attends and heads == "pair" else ""
            name = f"{method}, {calibrate}{whole}"
            report.add(f"{width:g}", name, net, time.perf_counter() - start)
        try:
            net = as_expensive(lambda ratio: pruned(source.model, source.input_size, ratio), source.input_size, spent)
        except ImportError:
            continue
        report.add(f"{width:g}", "Torch-Pruning, group L1", net, None)
        if normed:
            renew_norms(net, merger.passes)
            report.add(f"{width:g}", "Torch-Pruning, group L1, batchnorm", net, None)
    print(table(["width", "way", "accuracy %", "agrees %", "FLOPs", "params", "s"], report.rows))


if __name__ == "__main__":
    main()

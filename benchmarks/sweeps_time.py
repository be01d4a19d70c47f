"""Time of whole-model matching by weights: `git-rebasin` and the `mudsc` methods on two models with random weights.

    python benchmarks/sweeps_time.py [ARCHITECTURE] [--threads 2] [--methods git-rebasin mudsc-align mudsc-zip]

Prints a table: wall seconds, CPU seconds, and the mean agreement per space, which the sweeps raise. The second model
is a permuted copy of the first with noise on its weights, so that there is something to find; activations are those
of random images.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.assembly import Plan
from hf_zipit.chain import resolve_cut
from hf_zipit.checks import permuted, random_labels
from hf_zipit.matching.methods import METHODS, Options
from hf_zipit.merger import Merger
from hf_zipit.report import table


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="?", default="vit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--noise", type=float, default=0.5, help="relative to the deviation of every weight tensor")
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if METHODS[name].weights])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    first = timm.create_model(options.architecture, num_classes=10).eval()
    merger = Merger([first, first], [torch.randn(options.images, 3, 224, 224)], tasks=["a", "b"], cache=False)
    second = permuted(first, merger.binding, random_labels(merger.binding, 1))
    with torch.no_grad():
        for value in second.parameters():
            if value.ndim > 1:
                value.add_(options.noise * value.std() * torch.randn_like(value))
    merger = Merger([first, second], [torch.randn(options.images, 3, 224, 224)], tasks=["a", "b"], cache=False)
    plan = Plan(merger.binding, resolve_cut(merger.binding, None), None)
    merger.match(plan, Options("permute"))  # observes the models
    rows = []
    for method in options.methods:
        wall, cpu = time.perf_counter(), time.process_time()
        merger.match(plan, Options(method))
        rows.append([method, f"{time.perf_counter() - wall:.1f}", f"{time.process_time() - cpu:.1f}"])
    print(f"{options.architecture}, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(table(["method", "wall s", "CPU s"], rows))


if __name__ == "__main__":
    main()

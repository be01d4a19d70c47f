"""Time to match all spaces of a model by weights: `git-rebasin`, `weight-zip` and the `mudsc` methods.

    python benchmarks/sweeps_time.py [ARCHITECTURE] [--threads 2] [--methods git-rebasin mudsc-align mudsc-zip]

Prints a table: wall seconds, CPU seconds, and the number of times that a space was matched. There are two pairs of
models with random weights. In the first, one model is a permuted, noisy copy of the other, so there is a permutation to
find. In the second they are independent, which takes the most sweeps. Activations are those of random images.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.find_spec import find_spec
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.weights import WeightSimilarity
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.sources.load import load_source
from hf_zipit.specs.spaces import FeatureSpace
from hf_zipit.text import table
from hf_zipit.transform.permute import permuted, random_labels


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="?", default="vit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument(
        "--noise", type=float, default=0.5, help="relative to the standard deviation of each weight tensor"
    )
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if METHODS[name].weights])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    first, other = (timm.create_model(options.architecture, num_classes=10).eval() for _ in range(2))
    binding = find_spec(load_source(first))
    planted = permuted(first, binding, random_labels(binding, 1))
    with torch.no_grad():
        for value in planted.parameters():
            if value.ndim > 1:
                value.add_(options.noise * value.std() * torch.randn_like(value))
    rows = []
    for pair, second in (("planted", planted), ("independent", other)):
        merger = Merger([first, second], [torch.randn(options.images, 3, 224, 224)], tasks=["a", "b"], cache=False)
        plan = merger.parents.plan(None)
        merger.match(plan, Recipe(method="permute"))  # collects the statistics once
        for method in options.methods:
            with counted() as visits:
                wall_start = time.perf_counter()
                cpu_start = time.process_time()
                merger.match(plan, Recipe(method=method))
                wall = time.perf_counter() - wall_start
                cpu = time.process_time() - cpu_start
            rows.append([pair, method, f"{wall:.1f}", f"{cpu:.1f}", str(len(visits))])
    print(
        f"{options.architecture}, {len(binding.spaces)} spaces, {options.threads} threads, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(table(["pair", "method", "wall s", "CPU s", "matches"], rows))


@contextmanager
def counted() -> Iterator[list[str]]:
    """Record the name of a space each time its weights are compared."""
    visits: list[str] = []
    plain = WeightSimilarity.__call__

    def call(self: WeightSimilarity, space: FeatureSpace, *arguments: object, **options: object) -> object:
        visits.append(space.name)
        return plain(self, space, *arguments, **options)

    WeightSimilarity.__call__ = call
    try:
        yield visits
    finally:
        WeightSimilarity.__call__ = plain


if __name__ == "__main__":
    main()

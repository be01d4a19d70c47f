"""Time and memory of a whole merge, relative to the forward passes of its parents in the same run.

    python benchmarks/merge_time.py [--architecture resnet50] [--images 64] [--size 224] [--batch-size 16]

Prints JSON: seconds of `merge` (statistics, matching, transform, batch-norm re-estimation) and of its matching, each
also as a multiple of one forward pass of both parents over the same images; and the peak memory after that pass and
after the merge. Runs on one thread. The forward pass is timed before and after the merge, and averaged.
"""

import argparse
import json
import platform
import resource
import time

import timm
import torch

import hf_zipit
from hf_zipit.matching.matcher import Matcher


def peak() -> float:
    """Peak resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = [timm.create_model(options.architecture).eval() for _ in range(2)]
    batches = list(torch.randn(options.images, 3, options.size, options.size).split(options.batch_size))
    tiny = [timm.create_model("resnet18", num_classes=2) for _ in range(2)]
    hf_zipit.merge(tiny, [batches[0][:2, :, :64, :64]], tasks=["a", "b"])  # warm-up: imports and first calls

    def forward() -> float:
        start = time.perf_counter()
        with torch.no_grad():
            for pixels in batches:
                for model in models:
                    model(pixels)
        return time.perf_counter() - start

    matching = 0.0
    matches = Matcher.matches

    def timed(*arguments: object, **options: object) -> object:
        nonlocal matching
        start = time.perf_counter()
        out = matches(*arguments, **options)
        matching += time.perf_counter() - start
        return out

    Matcher.matches = timed
    before = forward()
    memory = peak()
    start = time.perf_counter()
    hf_zipit.merge(models, batches, tasks=["a", "b"], batch_size=options.batch_size)
    merge = time.perf_counter() - start
    memory_after = peak()
    plain = (before + forward()) / 2
    result = {
        "forward_of_both_parents_s": round(plain, 2),
        "merge_s": round(merge, 2),
        "merge_over_forward": round(merge / plain, 3),
        "matching_s": round(matching, 2),
        "matching_over_forward": round(matching / plain, 3),
        "peak_gb_parents_and_forward": round(memory, 2),
        "peak_gb_merge": round(memory_after, 2),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    print(json.dumps({**vars(options), **result}, indent=2))


if __name__ == "__main__":
    main()

"""Matching time against width, as ratios within one run: the fast greedy, one thread, two models.

    python benchmarks/matching_time.py [WIDTH ...]

Each row gives the seconds for `zip` (repaired and compat) and `permute`, and the ratio to the width before: an
O(n^2) algorithm quadruples when the width doubles. Also timed, at widths up to 512, is the plain step-by-step
procedure of `tests/test_matching.py`.
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.matching.match import permute_match, zip_match
from hf_zipit.report import table
from tests.test_matching import published, similarity


def timed(run: object, *arguments: object, **options: object) -> float:
    """Best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(*arguments, **options)
        times.append(time.perf_counter() - start)
    return min(times)


def main(widths: list[int]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    rows, last = [], None
    for width in widths:
        s, sizes = similarity(2, width, 0), [width, width]
        fast = timed(zip_match, s, sizes, alpha=0.1, beta=0.8)
        compat = timed(zip_match, s, sizes, alpha=0.1, beta=0.8, compat=True)
        slow = f"{timed(published, s, 2, 0.1, 0.8) / compat:.0f}x" if width <= 512 else "-"
        growth = f"{fast / last:.1f}x" if last else "-"
        rows.append([str(width), f"{fast:.3f}", growth, f"{compat:.3f}", slow, f"{timed(permute_match, s, sizes):.3f}"])
        last = fast
    print(table(["width", "zip s", "growth", "compat s", "step by step / compat", "permute s"], rows))


if __name__ == "__main__":
    main([int(w) for w in sys.argv[1:]] or [64, 128, 256, 512, 1024, 2048])

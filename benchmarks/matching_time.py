"""Matching time against width, as ratios within one run: every way to match one space, one thread, two models.

    python benchmarks/matching_time.py [WIDTH ...]

Each row gives the CPU seconds for `zip` (repaired and compat), `permute`, `kmeans`, `select` and `optimal`, and for
`zip` the ratio to the width before: an O(n^2) algorithm quadruples when the width doubles. Also timed, at widths up to
512, is the plain step-by-step procedure of `tests/test_matching.py`. The last two columns say how far `zip` is from
the optimum: at most, by the bound (its time beside it).
"""

import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from hf_zipit.matching.kmeans import kmeans_match
from hf_zipit.matching.optimal import LIMIT, optimal_match
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.quality import bound, optimality_gap
from hf_zipit.matching.select import select_match
from hf_zipit.matching.zip import zip_match
from hf_zipit.text import table
from tests.helpers.oracles import published, similarity


def timed(run: object, *arguments: object, repeat: int = 3, **options: object) -> float:
    """The best of some runs."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run(*arguments, **options)
        times.append(time.process_time() - start)
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
        optimal = f"{timed(optimal_match, s, sizes, repeat=1):.2f}" if 2 * width <= LIMIT else "-"
        others = [f"{timed(run, s, sizes):.3f}" for run in (permute_match, kmeans_match, select_match)]
        gap = f"{100 * optimality_gap(s, zip_match(s, sizes)):.1f} %"
        rows.append(
            [str(width), f"{fast:.3f}", growth, f"{compat:.3f}", slow, *others, optimal, gap, f"{timed(bound, s):.3f}"]
        )
        last = fast
    head = [
        "width",
        "zip",
        "growth",
        "compat",
        "step by step / compat",
        "permute",
        "kmeans",
        "select",
        "optimal",
        "zip's gap",
    ]
    print(table([*head, "bound"], rows))


if __name__ == "__main__":
    main([int(w) for w in sys.argv[1:]] or [64, 128, 256, 512, 1024, 2048])

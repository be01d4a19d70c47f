"""Time to match one space of two models against its width, for every matching algorithm, on one thread.

    python benchmarks/matching_time.py [WIDTH ...]

Each row gives CPU seconds for `zip` (default and compat), `permute`, `kmeans`, `select` and `optimal`. For `zip` it
also gives the ratio to the row above: the time of an O(n^2) algorithm quadruples when the width doubles. At widths up
to 512 the step-by-step procedure of `tests/helpers/oracles.py` is timed as a multiple of `compat`. The last two columns
are an upper bound on how far `zip` is from the optimum, and the seconds that this bound takes.
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
    """CPU seconds of the fastest of `repeat` runs."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run(*arguments, **options)
        times.append(time.process_time() - start)
    return min(times)


def main(widths: list[int]) -> None:
    """Print the table for these widths."""
    torch.set_num_threads(1)
    rows = []
    last = None
    for width in widths:
        s = similarity(2, width, 0)
        sizes = [width, width]
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
        "bound",
    ]
    print(table(head, rows))


if __name__ == "__main__":
    main([int(w) for w in sys.argv[1:]] or [64, 128, 256, 512, 1024, 2048])

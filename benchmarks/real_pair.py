"""Plot accuracy against cost from the report of `hf-zipit compare`, as shown in the README.

python benchmarks/real_pair.py REPORT/results.json benchmarks/real_pair.png
"""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

STYLES = {"average": "v", "permute": "s", "zip": "o", "select": "D", "first-parent": "x", "last-parent": "+"}
COLOURS = {"batchnorm": "tab:grey", "refit": "tab:blue", "refit-joint": "tab:orange"}


def draw(results: list[dict], out: Path) -> None:
    """Plot task average and joint accuracy of every merge, and the ensembles as stars."""
    unit = next(row["flops"] for row in results if row["method"].startswith("parent:"))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, score in zip(figure.subplots(1, 2), ("average", "joint"), strict=True):
        for method, marker in STYLES.items():
            for calibrate, colour in COLOURS.items():
                mine = [r for r in results if (r["method"], r["calibrate"]) == (method, calibrate)]
                points = sorted((r["flops"] / unit, 100 * r[score]) for r in mine)
                label = method if calibrate == "batchnorm" else f"{method}, {calibrate}"
                if points:
                    axes.plot(*zip(*points, strict=True), marker + "-", color=colour, label=label)
        for row in (row for row in results if row["method"] == "ensemble"):
            label = ", ".join(["ensemble of the parents", *filter(None, [row["calibrate"]])])
            colour = COLOURS.get(row["calibrate"], "black")
            axes.plot(row["flops"] / unit, 100 * row[score], "*", color=colour, ms=12, label=label)
        axes.set(xlabel="FLOPs for both tasks, relative to one parent", ylabel=f"{score} accuracy, %")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))

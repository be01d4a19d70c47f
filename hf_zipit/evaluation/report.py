"""Results as text tables and as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError
from hf_zipit.evaluation.classification import Row
from hf_zipit.evaluation.dense import TaskRow
from hf_zipit.text import si, table


def result_table(rows: Sequence[Row], tasks: Sequence[str]) -> str:
    """Accuracy in percent, FLOPs and parameters, one line per model."""
    lines = []
    for row in rows:
        accuracies = [f"{100 * row.tasks[task]:.1f}" if task in row.tasks else "-" for task in tasks]
        rest = [f"{100 * row.average:.1f}", f"{100 * row.joint:.1f}"]
        lines.append([row.model, *accuracies, *rest, si(row.flops), si(row.parameters)])
    return table(["model", *tasks, "average", "joint", "FLOPs", "params"], lines)


def task_table(rows: Sequence[TaskRow]) -> str:
    """Each task's own metrics, FLOPs and parameters, one line per model."""
    names = list(
        dict.fromkeys((task, metric) for row in rows for task, found in row.scores.items() for metric in found)
    )
    lines = []
    for row in rows:
        values = [row.scores.get(task, {}).get(metric) for task, metric in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append([row.model, *shown, si(row.flops), si(row.parameters)])
    return table(["model", *(f"{task}: {metric}" for task, metric in names), "FLOPs", "params"], lines)


def plot(results: Mapping[str, Sequence[Row]], spaces: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Accuracy against FLOPs for several merges of one pair, and what each merged space is made of.

    Args:
        results: name of the merge -> its rows with parents and ensemble.
        spaces: composition of one merge's spaces, as in `config.zipit["spaces"]`.
        path: the PNG to write.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("plots need matplotlib: pip install 'hf-zipit[plot]'") from None
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _accuracy(left, results)
    _composition(right, spaces)
    figure.savefig(path, dpi=150)
    return Path(path)


def _accuracy(axes: Any, results: Mapping[str, Sequence[Row]]) -> None:
    rows = next(iter(results.values()))
    ensemble = next((row for row in rows if row.model == "ensemble"), None)
    parents = [row for row in rows if row.model.startswith("parent:")]
    unit = parents[0].flops if parents else rows[0].flops
    colours, drawn = [f"C{i}" for i in range(len(results))], list[tuple[float, float]]()  # a ring around what is there
    for colour, (name, mine) in zip(colours, results.items(), strict=True):
        merged = next(row for row in mine if row.model == "merged")
        x = merged.flops / unit
        axes.plot([x, x], [100 * merged.joint, 100 * merged.average], color=colour, lw=1, alpha=0.5)
        axes.plot([], [], "o", color=colour, label=name)
        for value, mark, fill in ((100 * merged.average, "o", colour), (100 * merged.joint, "s", "none")):
            under = sum(abs(x - a) < 0.02 and abs(value - b) < 2.5 for a, b in drawn)
            drawn.append((x, value))
            axes.plot(x, value, mark, ms=7 + 5 * under, mfc="none" if under else fill, mew=1.5, color=colour)
    if ensemble:
        x = ensemble.flops / unit
        axes.plot([x, x], [100 * ensemble.joint, 100 * ensemble.average], color="black", lw=1, alpha=0.5)
        axes.plot(x, 100 * ensemble.average, "*", ms=14, color="black", label="ensemble of the parents")
        axes.plot(x, 100 * ensemble.joint, "s", ms=7, mfc="white", color="black")
    if parents:
        mean = 100 * sum(row.average for row in parents) / len(parents)
        axes.axhline(mean, color="grey", ls="--", lw=1, label="parents, each on its own task")
    axes.plot([], [], "o", color="grey", label="circles: task average")
    axes.plot([], [], "s", mfc="white", color="grey", label="squares: joint, all classes")
    axes.set(
        xlabel="FLOPs for all tasks, in forwards of one parent", ylabel="accuracy, %", title="Accuracy against cost"
    )
    axes.set_xlim(0.9, max(2.1, 1.05 * max(row.flops / unit for mine in results.values() for row in mine)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")


def _composition(axes: Any, spaces: Sequence[Mapping[str, Any]]) -> None:
    names = [space["name"] for space in spaces]
    left = [0.0] * len(names)
    kinds = {"shared": "shared by the tasks", "within": "merged within one model", "alone": "kept as it was"}
    for colour, (kind, label) in zip(("C0", "C1", "lightgrey"), kinds.items(), strict=True):
        share = [100 * space[kind] / space["width"] for space in spaces]
        axes.barh(names, share, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="merged units, %", xlim=(0, 100), title="What the merged units of zip are made of")
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)

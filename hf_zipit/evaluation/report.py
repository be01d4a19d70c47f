"""Results of an evaluation as a text table and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import cost_of
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.results import Result
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.sources.source import Source
from hf_zipit.text import percent, si, table


def result_table(rows: Sequence[Result], tasks: Sequence[str]) -> str:
    """A table with the scores, FLOPs and parameters of each model.

    The scores are accuracies in percent, or the metrics of each task if the tasks have outputs of different kinds.

    Args:
        rows: The results, one per line.
        tasks: Names of the tasks, in order.
    """
    if any(row.scores for row in rows):
        return _metric_table(rows)
    lines = []
    for row in rows:
        accuracies = [f"{100 * row.tasks[task]:.1f}" if task in row.tasks else "-" for task in tasks]
        rest = [percent(row.average), percent(row.joint)]
        lines.append([row.model, *accuracies, *rest, si(row.flops), si(row.parameters), *_times(row, rows)])
    return table(["model", *tasks, "average", "joint", "FLOPs", "params", *_time_columns(rows)], lines)


def before_and_after(smaller: nn.Module, source: Source, rows: Sequence[Result]) -> str:
    """A table with the costs of a model and of what was made of it, and with their scores if they were measured.

    Args:
        smaller: The new model.
        source: The model that it was made of.
        rows: Results of both, as an evaluation returns them; none without labels.
    """
    costs = {"before": cost_of((source.network or source.model), source.input_size)}
    costs["after"] = cost_of(smaller, source.input_size)
    scores: dict[str, dict[str, str]] = {name: {} for name in costs}
    for row in rows:
        if row.model != "ensemble":
            found = {task: {"accuracy": value} for task, value in row.tasks.items()} | row.scores
            named = {f"{task}: {metric}": percent(v) for task, mine in found.items() for metric, v in mine.items()}
            scores["after" if row.model == "merged" else "before"] |= named
    lines = [
        [
            name,
            *scores[name].values(),
            *_shares(cost.flops, costs["before"].flops),
            *_shares(cost.parameters, costs["before"].parameters),
        ]
        for name, cost in costs.items()
    ]
    return table(["", *scores["after"], "FLOPs", "of before", "params", "of before"], lines)


def price(merged: Merged, sources: Sequence[Source]) -> str:
    """What a merge costs for all its tasks, relative to the largest of its parents, as a sentence."""
    size = preprocessing_of(merged)[0]
    costs = [cost_of(source.network or source.model, size) for source in sources]
    most = max(costs, key=lambda cost: cost.flops)
    mine = cost_of(merged, size)
    flops, parameters = mine.flops / most.flops, mine.parameters / most.parameters
    return f"Cost: {flops:.2f} times the FLOPs and {parameters:.2f} times the parameters of one parent"


def _shares(value: int, before: int) -> list[str]:
    """A number, and its share of what it was before."""
    return [si(value), f"{value / before:.2f}"]


def _time_columns(rows: Sequence[Result]) -> list[str]:
    """The columns of the latency, if it was measured: one for each size of a batch."""
    return [f"ms, batch {batch}" for batch in rows[0].latency]


def _times(row: Result, rows: Sequence[Result]) -> list[str]:
    """The latency of one model in these columns."""
    return [f"{row.latency[batch]:.1f}" if batch in row.latency else "-" for batch in rows[0].latency]


def counted(rows: Sequence[Result]) -> str:
    """A line that says over how many images the tasks of a merge were measured; empty if they were not counted."""
    images = rows[0].images
    return f"images: {', '.join(f'{task} {count}' for task, count in images.items())}" if images else ""


def _metric_table(rows: Sequence[Result]) -> str:
    pairs = ((task, metric) for row in rows for task, found in row.scores.items() for metric in found)
    names = list(dict.fromkeys(pairs))
    lines = []
    for row in rows:
        values = [row.scores.get(task, {}).get(metric) for task, metric in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append([row.model, *shown, si(row.flops), si(row.parameters), *_times(row, rows)])
    scores = [f"{task}: {metric}" for task, metric in names]
    return table(["model", *scores, "FLOPs", "params", *_time_columns(rows)], lines)


def plot(results: Mapping[str, Sequence[Result]], spaces: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Plot accuracy against FLOPs for several merges of the same models, and the composition of the merged spaces.

    Args:
        results: Name of the merge -> its results, with those of the parents and the ensemble.
        spaces: Composition of the spaces of one merge, as in `config.zipit["spaces"]`.
        path: The PNG file to write.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure = blank_figure(12, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    _accuracy(left, results)
    _composition(right, spaces)
    figure.savefig(path, dpi=150)
    return Path(path)


def plot_composition(spaces: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Plot which units of a merge are shared by the tasks, merged within one model, or unmerged.

    Args:
        spaces: Composition of the spaces of the merge, as in `config.zipit["spaces"]`.
        path: The PNG file to write.

    Raises:
        OptionError: matplotlib is not installed.
    """
    height = 0.6 + 0.28 * len(spaces)
    figure = blank_figure(8, height + 1.2)
    _composition(figure.subplots(), spaces, below=0.47 / height)
    figure.savefig(path, dpi=150)
    return Path(path)


def blank_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure of a size in inches.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("plots need matplotlib: pip install 'hf-zipit[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def _accuracy(axes: Any, results: Mapping[str, Sequence[Result]]) -> None:
    rows = next(iter(results.values()))
    ensemble = next((row for row in rows if row.model == "ensemble"), None)
    parents = [row for row in rows if row.model.startswith("parent:")]
    unit = parents[0].flops if parents else rows[0].flops
    colours = [f"C{i}" for i in range(len(results))]
    drawn: list[tuple[float, float]] = []  # a point on top of others becomes a ring around them
    for colour, (name, mine) in zip(colours, results.items(), strict=True):
        merged = next(row for row in mine if row.model == "merged")
        x = merged.flops / unit
        axes.plot([x, x], [100 * (merged.joint or 0), 100 * (merged.average or 0)], color=colour, lw=1, alpha=0.5)
        axes.plot([], [], "o", color=colour, label=name)
        for value, mark, fill in ((100 * (merged.average or 0), "o", colour), (100 * (merged.joint or 0), "s", "none")):
            under = sum(abs(x - a) < 0.02 and abs(value - b) < 2.5 for a, b in drawn)
            drawn.append((x, value))
            axes.plot(x, value, mark, ms=7 + 5 * under, mfc="none" if under else fill, mew=1.5, color=colour)
    if ensemble:
        x = ensemble.flops / unit
        axes.plot([x, x], [100 * (ensemble.joint or 0), 100 * (ensemble.average or 0)], color="black", lw=1, alpha=0.5)
        axes.plot(x, 100 * (ensemble.average or 0), "*", ms=14, color="black", label="ensemble of the parents")
        axes.plot(x, 100 * (ensemble.joint or 0), "s", ms=7, mfc="white", color="black")
    if parents:
        mean = 100 * sum(row.average or 0 for row in parents) / len(parents)
        axes.axhline(mean, color="grey", ls="--", lw=1, label="parents, each on its own task")
    axes.plot([], [], "o", color="grey", label="circles: task average")
    axes.plot([], [], "s", mfc="white", color="grey", label="squares: joint, all classes")
    axes.set(xlabel="FLOPs for all tasks, relative to one parent", ylabel="accuracy, %", title="Accuracy against cost")
    axes.set_xlim(0.9, max(2.1, 1.05 * max(row.flops / unit for mine in results.values() for row in mine)))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")


def _composition(axes: Any, spaces: Sequence[Mapping[str, Any]], below: float = 0.12) -> None:
    """Draw the composition of spaces, with a legend below the axes by a share of their height."""
    names = [space["name"] for space in spaces]
    left = [0.0] * len(names)
    kinds = {"shared": "shared by the tasks", "within": "merged within one model", "alone": "unmerged"}
    for colour, (kind, label) in zip(("C0", "C1", "lightgrey"), kinds.items(), strict=True):
        share = [100 * space[kind] / space["width"] for space in spaces]
        axes.barh(names, share, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="merged units, %", xlim=(0, 100), title="Composition of the merged units")
    axes.tick_params(axis="y", labelsize=8)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -below), ncols=3, frameon=False)

"""The results of a comparison as a picture: accuracy against cost, and the correlation of features."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.comparison.columns import label_of, measure_of, setting_of, size_of, unit_of
from hf_zipit.evaluation.report import blank_figure
from hf_zipit.evaluation.results import Result

COLOURS = [*(f"C{i}" for i in range(10)), "gold", "navy", "lime", "magenta"]
SCORES = {  # what the plot shows, by what is measured beside the tasks
    "joint": "joint accuracy over all classes, %",
    "distance": "agreement with the parents, %",
    "": "score relative to the parents, %",
}


def plot_comparison(results: Sequence[Result], path: str | Path) -> Path:
    """Plot the accuracy of merges, parents and ensemble against FLOPs, and the correlation of features.

    Each method has one line over its cuts (solid), one over the widths at each cut (dashed), and one over the budgets
    (dotted). The second plot is the correlation of merged and parents' features, space by space (ZipIt!, section 5).

    Args:
        results: The results of the merges, the parents and the ensemble.
        path: The PNG file to write.

    Raises:
        OptionError: matplotlib is not installed.
    """
    results = [row for row in results if not row.error]
    merges = [row for row in results if row.merged]
    featured = [row for row in merges if row.correlation]
    figure = blank_figure(15 if featured else 9, 5.2)
    axes = figure.subplots(1, 2 if featured else 1, squeeze=False)[0]
    calibrations = list(dict.fromkeys(setting_of(row, "calibrate") for row in merges))
    methods = list(dict.fromkeys(row.model for row in merges))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    marks = dict(zip(calibrations, "os^Dvp*X" * len(calibrations), strict=False))
    _costs(axes[0], results, merges, colours, marks)
    if featured:
        _features(axes[1], featured, colours, marks)
    _legend(figure, axes[0], merges, colours, marks)
    figure.savefig(path, dpi=150, format="png")
    return Path(path)


def _costs(
    axes: Any,
    results: Sequence[Result],
    merges: Sequence[Result],
    colours: Mapping[str, str],
    marks: Mapping[str, str],
) -> None:
    """Draw accuracy against FLOPs."""
    unit = unit_of(results)
    measure = measure_of(results)
    score = "joint" if measure == "joint" else "average"
    for method, colour in colours.items():
        for calibrate, mark in marks.items():
            mine = [r for r in merges if (r.model, setting_of(r, "calibrate")) == (method, calibrate)]
            for dash, _, curve in _curves(mine):
                points = sorted((row.flops / unit, 100 * (getattr(row, score) or 0)) for row in curve)
                axes.plot(*zip(*points, strict=True), ls=dash, marker=mark, ms=5, color=colour)
    ensemble = [row for row in results if row.model == "ensemble"]
    parents = [row for row in results if row.model.startswith("parent:")]
    for row in ensemble:
        name = ", ".join(["ensemble of the parents", *row.settings.values()])
        line = "--" if row.settings else "-"
        axes.axhline(100 * (getattr(row, score) or 0), color="black", lw=1, ls=line, label=name)
        axes.plot(row.flops / unit, 100 * (getattr(row, score) or 0), "*", ms=12, color="black")
    for i, row in enumerate(parents):
        axes.axhline(100 * (getattr(row, score) or 0), color="grey", lw=1, ls=("--", ":", "-.")[i % 3], label=row.model)
    axes.set(
        xlabel="FLOPs for all tasks, relative to one parent", ylabel=SCORES[measure], title="Accuracy against cost"
    )
    axes.grid(alpha=0.3)


def _legend(
    figure: Any, axes: Any, merges: Sequence[Result], colours: Mapping[str, str], marks: Mapping[str, str]
) -> None:
    """Add one entry for each method (colour), calibration (marker) and kind of line, not for their combinations."""
    for method, colour in colours.items():
        axes.plot([], [], color=colour, lw=3, label=label_of(method))
    for calibrate, mark in marks.items():
        axes.plot([], [], mark, ms=5, color="grey", label=calibrate)
    for dash, varied in dict.fromkeys((dash, varied) for dash, varied, _ in _curves(merges)):
        axes.plot([], [], dash, color="grey", label=varied)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")


def _curves(merges: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """The lines through the merges of one method: their style, the setting that varies, and their merges."""
    sized = [row for row in merges if not setting_of(row, "flops_budget")]
    found = [("-", "cuts", [row for row in sized if setting_of(row, "width") == 1])]
    for cut in dict.fromkeys(setting_of(row, "cut") for row in sized if setting_of(row, "width") != 1):
        found.append(("--", "widths at each cut", [row for row in sized if setting_of(row, "cut") == cut]))
    found.append((":", "FLOP budgets", [row for row in merges if setting_of(row, "flops_budget")]))
    return [curve for curve in found if curve[2]]


def _features(axes: Any, featured: Sequence[Result], colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """Draw the correlation of features, space by space.

    If there are merges as wide as one model, only they are shown. Of these, only the deepest are shown, because a
    later cut does not change the features before an earlier one.
    """
    own = [row for row in featured if size_of(row) == "1"]
    featured = own or featured
    depth = max(len(row.correlation) for row in featured)
    deepest = [row for row in featured if len(row.correlation) == depth]
    one_each = {(row.model, setting_of(row, "calibrate")): row for row in deepest}
    for row in one_each.values():
        values = list(row.correlation.values())
        axes.plot(values, ms=3, marker=marks[setting_of(row, "calibrate")], color=colours[row.model])
    cut = setting_of(deepest[0], "cut")
    where = f"merged up to {cut}" if cut else "merged in all layers"
    names = list(deepest[0].correlation)
    step = max(1, len(names) // 24)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="correlation of merged and parents' units", title=f"Features, {where}", ylim=(None, 1.02))
    axes.grid(alpha=0.3)

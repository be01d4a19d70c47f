"""The results of a comparison as a text table, CSV, JSON and a picture."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import METHODS
from hf_zipit.text import si, table

Result = Mapping[str, Any]
COLOURS = [*(f"C{i}" for i in range(10)), "gold", "navy", "lime", "magenta"]
_log = logging.getLogger("hf_zipit")
WHOLE = "none"  # how "no cut" is written


def comparison_table(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """One line for each merge: accuracy in percent (without labels: agreement with the parents), and what it costs."""
    labelled = all("joint" in row for row in results)
    last = "joint" if labelled else "distance"
    unit, sized = _unit(results), any(_size(row) not in ("1", "-") for row in results)
    lines = []
    for row in results:
        scores = [f"{100 * row['tasks'][task]:.1f}" if task in row["tasks"] else "-" for task in tasks]
        final = f"{100 * row['joint']:.1f}" if labelled else f"{row['distance']:.3f}"
        cost = [f"{row['flops'] / unit:.2f}x", si(row["parameters"])]
        likeness = f"{_mean(row['correlation']):.2f}" if row.get("correlation") else "-"
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else "-"
        settings = [_cut(row), *([_size(row)] if sized else []), row["calibrate"] or "-"]
        lines.append([_name(row), *settings, *scores, f"{100 * row['average']:.1f}", final, *cost, likeness, seconds])
    settings = ["cut", *(["size"] if sized else []), "calibrate"]
    header = ["method", *settings, *tasks, "average", last, "FLOPs", "params", "correlation", "seconds"]
    return table(header, lines)


def write_report(results: Sequence[Result], tasks: Sequence[str], folder: str | Path) -> list[Path]:
    """Write `results.csv`, `results.json` and, where matplotlib is installed, `results.png`; returns what was written.

    The picture shows accuracy against FLOPs, with parents and ensemble: for each method one line over its cuts
    (solid), one over the widths at each cut (dashed) and one over the budgets (dotted); and the correlation of merged
    and parents' features layer by layer (ZipIt!, section 5).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "results.csv", folder / "results.json"]
    names = ["method", "cut", "width", "flops_budget", "calibrate", *(f"task {task}" for task in tasks)]
    scores = ["average", "joint", "distance", "flops", "parameters", "seconds", "correlation"]
    with written[0].open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*names, *scores])
        for row in results:
            values = {**row, "correlation": _mean(row["correlation"]) if row.get("correlation") else ""}
            sizes = ["" if row.get(key) is None else row[key] for key in ("width", "flops_budget")]
            settings = [row["method"], _cut(row), *sizes, row["calibrate"] or ""]
            writer.writerow(
                [*settings, *(row["tasks"].get(task, "") for task in tasks)] + [values.get(s, "") for s in scores]
            )
    written[1].write_text(json.dumps(list(results), indent=2), encoding="utf-8")
    try:
        written.append(plot_comparison(results, folder / "results.png"))
    except OptionError as error:
        _log.warning("no picture: %s", error)
    return written


def plot_comparison(results: Sequence[Result], path: str | Path) -> Path:
    """Draw the picture.

    Raises:
        OptionError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise OptionError("plots need matplotlib: pip install 'hf-zipit[plot]'") from None
    merges = [row for row in results if "seconds" in row]
    featured = [row for row in merges if row.get("correlation")]
    figure = Figure(figsize=(15, 5.2) if featured else (9, 5.2), layout="constrained")
    axes = figure.subplots(1, 2 if featured else 1, squeeze=False)[0]
    calibrations = list(dict.fromkeys(row["calibrate"] for row in merges))
    methods = list(dict.fromkeys(row["method"] for row in merges))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    marks = dict(zip(calibrations, "os^Dvp*X" * len(calibrations), strict=False))
    _costs(axes[0], results, merges, colours, marks)
    if featured:
        _features(axes[1], featured, colours, marks)
    _legend(figure, axes[0], merges, colours, marks)
    figure.savefig(path, dpi=150)
    return Path(path)


def _costs(
    axes: Any,
    results: Sequence[Result],
    merges: Sequence[Result],
    colours: Mapping[str, str],
    marks: Mapping[str, str],
) -> None:
    unit, labelled = _unit(results), all("joint" in row for row in results)
    score = "joint" if labelled else "average"
    for method, colour in colours.items():
        for calibrate, mark in marks.items():
            mine = [r for r in merges if (r["method"], r["calibrate"]) == (method, calibrate)]
            for dash, _, curve in _curves(mine):
                points = sorted((row["flops"] / unit, 100 * row[score]) for row in curve)
                axes.plot(*zip(*points, strict=True), ls=dash, marker=mark, ms=5, color=colour)
    ensemble = [row for row in results if row["method"] == "ensemble"]
    parents = [row for row in results if row["method"].startswith("parent:")]
    for row in ensemble:
        axes.axhline(100 * row[score], color="black", lw=1, label="ensemble of the parents")
        axes.plot(row["flops"] / unit, 100 * row[score], "*", ms=12, color="black")
    for i, row in enumerate(parents):
        axes.axhline(100 * row[score], color="grey", lw=1, ls=("--", ":", "-.")[i % 3], label=row["method"])
    what = "joint accuracy over all classes, %" if labelled else "same answer as the parent, %"
    axes.set(xlabel="FLOPs for all tasks, in forwards of one parent", ylabel=what, title="Accuracy against cost")
    axes.grid(alpha=0.3)


def _legend(
    figure: Any, axes: Any, merges: Sequence[Result], colours: Mapping[str, str], marks: Mapping[str, str]
) -> None:
    """One entry for each method (colour), calibration (mark) and kind of line, not for each of their combinations."""
    for method, colour in colours.items():
        axes.plot([], [], color=colour, lw=3, label=_name({"method": method}))
    for calibrate, mark in marks.items():
        axes.plot([], [], mark, ms=5, color="grey", label=calibrate)
    for dash, varied in dict.fromkeys((dash, varied) for dash, varied, _ in _curves(merges)):
        axes.plot([], [], dash, color="grey", label=varied)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")


def _curves(merges: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """What one method's merges show: the line, what varies along it (but for cuts), and the merges on it."""
    sized = [row for row in merges if not row["flops_budget"]]
    found = [("-", "cuts", [row for row in sized if row["width"] == 1])]
    for cut in dict.fromkeys(row["cut"] for row in sized if row["width"] != 1):
        found.append(("--", "widths at each cut", [row for row in sized if row["cut"] == cut]))
    found.append((":", "FLOP budgets", [row for row in merges if row["flops_budget"]]))
    return [curve for curve in found if curve[2]]


def _features(axes: Any, featured: Sequence[Result], colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """The deepest merges only, as wide as a model if there are any: a cut leaves the layers below as they are."""
    own = [row for row in featured if _size(row) == "1"]
    featured = own or featured
    depth = max(len(row["correlation"]) for row in featured)
    deepest = [row for row in featured if len(row["correlation"]) == depth]
    for row in {(r["method"], r["calibrate"]): r for r in deepest}.values():
        values = list(row["correlation"].values())
        axes.plot(values, ms=3, marker=marks[row["calibrate"]], color=colours[row["method"]])
    cut = deepest[0]["cut"]
    where = f"merged up to {cut}" if cut else "merged in all layers"
    names = list(deepest[0]["correlation"])
    step = max(1, len(names) // 24)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="correlation of merged and parents' units", title=f"Features, {where}", ylim=(None, 1.02))
    axes.grid(alpha=0.3)


def _unit(results: Sequence[Result]) -> float:
    """FLOPs of one parent."""
    parents = [row["flops"] for row in results if row["method"].startswith("parent:")]
    return float(parents[0] if parents else min(row["flops"] for row in results))


def _name(row: Result) -> str:
    """The method; a control is marked, as it is none."""
    method = METHODS.get(row["method"])
    return f"control:{row['method']}" if method and method.control else str(row["method"])


def _cut(row: Result) -> str:
    return "-" if row["calibrate"] is None else row["cut"] or WHOLE


def _size(row: Result) -> str:
    """The width, or the budget."""
    if row["calibrate"] is None:
        return "-"
    return f"<={row['flops_budget']:g}x" if row["flops_budget"] else f"{row['width']:g}"


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)

"""The results of a comparison as a text table, CSV, JSON and a plot."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.evaluation.report import blank_figure
from hf_zipit.evaluation.results import Result, mean
from hf_zipit.files.folders import is_empty
from hf_zipit.files.place import check_place
from hf_zipit.files.single import write_file
from hf_zipit.matching.methods import METHODS
from hf_zipit.recipe import NO_CUT
from hf_zipit.text import si, table

ROWS = "rows.jsonl"
PICTURE = "results.png"
FILES = (ROWS, "results.csv", "results.json", PICTURE)
COLOURS = [*(f"C{i}" for i in range(10)), "gold", "navy", "lime", "magenta"]
_log = logging.getLogger("hf_zipit")
SCORES = {  # what the plot shows, by what is measured beside the tasks
    "joint": "joint accuracy over all classes, %",
    "distance": "agreement with the parents, %",
    "": "score relative to the parents, %",
}


def check_report(folder: str | Path) -> None:
    """Check that a folder can hold the report of a comparison: it is new, empty, or holds an earlier report.

    Raises:
        OptionError: it holds something else, such as a model.
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    check_place(folder)
    if not folder.exists() or is_empty(folder):
        return
    other = sorted(path.name for path in folder.iterdir() if path.name not in FILES and not path.name.startswith("."))
    if "config.json" in other or not any((folder / name).is_file() for name in FILES):
        raise OptionError(
            f"{folder} holds no earlier report, but {', '.join(other[:3])}: choose another folder for the report"
        )


def comparison_table(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """A table with the scores and costs of each merge.

    Scores are accuracies in percent. Without labels they are the agreement with the parents. If the tasks have outputs
    of different kinds, they are each task's first metric, and their average is relative to that of the parents.

    Args:
        results: The results of the merges, the parents and the ensemble.
        tasks: Names of the tasks, in order.
    """
    failed = [row for row in results if row.error]
    measured = [row for row in results if not row.error]
    measure = _measure(measured)
    unit = _unit(measured)
    sized = any(_size(row) not in ("1", "-") for row in measured)
    lines = []
    for row in measured:
        settings = [_cut(row), *([_size(row)] if sized else []), str(_setting(row, "calibrate") or "-")]
        scores = [f"{100 * row.tasks[task]:.1f}" if task in row.tasks else "-" for task in tasks]
        scores.append("-" if row.average is None else f"{100 * row.average:.1f}")
        if measure == "joint":
            scores.append(f"{100 * (row.joint or 0):.1f}")
        if measure == "distance":
            scores.append(f"{row.distance or 0:.3f}")
        cost = [f"{row.flops / unit:.2f}x", si(row.parameters)]
        correlation = f"{mean(row.correlation):.2f}" if row.correlation else "-"
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append([_label(row.model), *settings, *scores, *cost, correlation, seconds])
    settings = ["cut", *(["size"] if sized else []), "calibrate"]
    average = "average" if measure else "relative"
    header = ["method", *settings, *tasks, average, *([measure] if measure else []), "FLOPs", "params"]
    reasons = [f"failed: {_title(row)}: {row.error}" for row in failed]
    return "\n".join([table([*header, "correlation", "seconds"], lines), *([""] if reasons else []), *reasons])


def plain(row: Result) -> dict[str, Any]:
    """A result as plain values, with the settings of the merge beside its scores."""
    measured = row.to_dict()
    settings = measured.pop("settings", {})
    if row.error:
        del measured["flops"], measured["parameters"]  # which nothing has
    if not row.merged:
        return {"method": row.model, "cut": None, "calibrate": settings.get("calibrate"), **measured}
    del measured["model"]
    return {"method": row.model, **settings, **measured}


def write_report(results: Sequence[Result], tasks: Sequence[str], folder: str | Path) -> list[Path]:
    """Write `results.csv`, `results.json` and, if matplotlib is installed, `results.png`.

    Args:
        results: The results of the merges, the parents and the ensemble.
        tasks: Names of the tasks, in order.
        folder: The folder to write to; created if needed.

    Returns:
        The files that were written.
    """
    folder = Path(folder)
    made = {folder / "results.csv": _csv(results, tasks)}
    made[folder / "results.json"] = json.dumps([plain(row) for row in results], indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in made.items():
            write_file(file, text)
        write_file(folder / PICTURE, lambda path: plot_comparison(results, path))
    except OptionError as error:
        _log.warning("%s is not written: %s", PICTURE, error)
        return list(made)
    except OSError as error:
        raise OutputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return [*made, folder / PICTURE]


def _csv(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The results as CSV, one line for each row."""
    names = ["method", "cut", "width", "flops_budget", "calibrate", *(f"task {task}" for task in tasks)]
    measured = ["average", "joint", "distance", "flops", "parameters", "seconds"]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*names, *measured, "correlation", "error"])
    for row in results:
        sizes = [_setting(row, "width"), _setting(row, "flops_budget")]
        settings = [row.model, _cut(row), *sizes, _setting(row, "calibrate")]
        scores = [row.tasks.get(task) for task in tasks]
        values = [None if row.error else getattr(row, name) for name in measured]
        correlation = mean(row.correlation) if row.correlation else None
        cells = [*settings, *scores, *values, correlation, row.error]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()


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
    calibrations = list(dict.fromkeys(_setting(row, "calibrate") for row in merges))
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
    unit = _unit(results)
    measure = _measure(results)
    score = "joint" if measure == "joint" else "average"
    for method, colour in colours.items():
        for calibrate, mark in marks.items():
            mine = [r for r in merges if (r.model, _setting(r, "calibrate")) == (method, calibrate)]
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
        axes.plot([], [], color=colour, lw=3, label=_label(method))
    for calibrate, mark in marks.items():
        axes.plot([], [], mark, ms=5, color="grey", label=calibrate)
    for dash, varied in dict.fromkeys((dash, varied) for dash, varied, _ in _curves(merges)):
        axes.plot([], [], dash, color="grey", label=varied)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")


def _curves(merges: Sequence[Result]) -> list[tuple[str, str, list[Result]]]:
    """The lines through the merges of one method: their style, the setting that varies, and their merges."""
    sized = [row for row in merges if not _setting(row, "flops_budget")]
    found = [("-", "cuts", [row for row in sized if _setting(row, "width") == 1])]
    for cut in dict.fromkeys(_setting(row, "cut") for row in sized if _setting(row, "width") != 1):
        found.append(("--", "widths at each cut", [row for row in sized if _setting(row, "cut") == cut]))
    found.append((":", "FLOP budgets", [row for row in merges if _setting(row, "flops_budget")]))
    return [curve for curve in found if curve[2]]


def _features(axes: Any, featured: Sequence[Result], colours: Mapping[str, str], marks: Mapping[str, str]) -> None:
    """Draw the correlation of features, space by space.

    If there are merges as wide as one model, only they are shown. Of these, only the deepest are shown, because a
    later cut does not change the features before an earlier one.
    """
    own = [row for row in featured if _size(row) == "1"]
    featured = own or featured
    depth = max(len(row.correlation) for row in featured)
    deepest = [row for row in featured if len(row.correlation) == depth]
    one_each = {(row.model, _setting(row, "calibrate")): row for row in deepest}
    for row in one_each.values():
        values = list(row.correlation.values())
        axes.plot(values, ms=3, marker=marks[_setting(row, "calibrate")], color=colours[row.model])
    cut = _setting(deepest[0], "cut")
    where = f"merged up to {cut}" if cut else "merged in all layers"
    names = list(deepest[0].correlation)
    step = max(1, len(names) // 24)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=7)
    axes.set(ylabel="correlation of merged and parents' units", title=f"Features, {where}", ylim=(None, 1.02))
    axes.grid(alpha=0.3)


def _unit(results: Sequence[Result]) -> float:
    """FLOPs of one parent."""
    parents = [row.flops for row in results if row.model.startswith("parent:")]
    return float(parents[0] if parents else min(row.flops for row in results))


def _measure(results: Sequence[Result]) -> str:
    """What is measured besides the tasks: `joint` accuracy, `distance` from the parents' outputs, or nothing, `""`."""
    if all(row.joint is not None for row in results):
        return "joint"
    return "distance" if all(row.distance is not None for row in results) else ""


def _setting(row: Result, name: str) -> Any:
    """An option of a merge; `None` for parents."""
    return row.settings.get(name)


def _title(row: Result) -> str:
    """A merge by its settings."""
    settings = f"{_label(row.model)}, cut {_cut(row)}, calibrate {_setting(row, 'calibrate')}"
    return settings if _size(row) == "1" else f"{settings}, size {_size(row)}"


def _label(method: str) -> str:
    """The name of a method; controls are marked."""
    known = METHODS.get(method)
    return f"control:{method}" if known and known.control else method


def _cut(row: Result) -> str:
    return (_setting(row, "cut") or NO_CUT) if row.merged else "-"


def _size(row: Result) -> str:
    """The width or the budget of a merge, for the table."""
    if not row.merged:
        return "-"
    budget = _setting(row, "flops_budget")
    return f"<={budget:g}x" if budget else f"{_setting(row, 'width'):g}"

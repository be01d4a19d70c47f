"""The results of a comparison as cells of a table: the same columns in a text, in Markdown and in LaTeX."""

from collections.abc import Sequence
from typing import Any

from hf_zipit.evaluation.results import Result, mean
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.options import Options
from hf_zipit.recipe import NO_CUT
from hf_zipit.text import si

OWN_COLUMNS = ("method", "width", "flops_budget")


def columns(results: Sequence[Result], tasks: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The header and the cells of a table of all results that were measured.

    Scores are accuracies in percent. Without labels they are the agreement with the parents. If the tasks have outputs
    of different kinds, they are each task's first metric, and their average is relative to that of the parents. Of
    means over pairs, the standard deviation follows, and the number of pairs.

    Args:
        results: The results of the merges, the parents and the ensemble.
        tasks: Names of the tasks, in order.
    """
    rows = [row for row in results if not row.error]
    measure = measure_of(rows)
    unit = unit_of(rows)
    sized = any(size_of(row) not in ("1", "-") for row in rows)
    varied = len({options_of(row) for row in rows if row.merged}) > 1
    paired = any(row.pairs for row in rows)
    scores = ["average" if measure else "relative", *([measure] if measure else [])]
    header = ["method", "cut", *(["size"] if sized else []), "calibrate", *(["options"] if varied else [])]
    header += [*tasks, *scores, "FLOPs", "params", "correlation", "seconds", *(["pairs"] if paired else [])]
    lines = []
    for row in rows:
        cells = [label_of(row.model), cut_of(row), *([size_of(row)] if sized else [])]
        cells += [str(setting_of(row, "calibrate") or "-"), *([options_of(row) or "-"] if varied else [])]
        cells += [f"{100 * row.tasks[task]:.1f}" if task in row.tasks else "-" for task in tasks]
        cells += [_score(row, "average"), *([_score(row, measure)] if measure else [])]
        cells += [f"{row.flops / unit:.2f}x", si(row.parameters)]
        cells += [f"{mean(row.correlation):.2f}" if row.correlation else "-"]
        cells += ["-" if row.seconds is None else f"{row.seconds:.1f}", *([str(row.pairs)] if paired else [])]
        lines.append(cells)
    return header, lines


def legend(results: Sequence[Result]) -> str:
    """What the columns of the table mean, one line for each."""
    rows = [row for row in results if not row.error]
    measure = measure_of(rows)
    said = ["tasks and average: accuracy in percent, or agreement with the parents where there are no labels"]
    if not measure:
        said = ["tasks: the first metric of each in percent; relative: mean over the tasks, relative to the parents"]
    said += {
        "joint": ["joint: accuracy among the classes of all tasks, with no task given"],
        "distance": ["distance: squared, of the outputs from the parents', as a share of their variance"],
        "": [],
    }[measure]
    said.append("FLOPs: of all tasks for one image, in forward passes of one parent")
    said.append("correlation: of merged units with the parents' units, mean over the layers")
    return "\n".join([*said, "seconds: what making the merge took"])


def failures(results: Sequence[Result]) -> list[str]:
    """One line for every merge that could not be made."""
    return [f"failed: {_title(row)}: {row.error}" for row in results if row.error]


def unit_of(results: Sequence[Result]) -> float:
    """FLOPs of one parent."""
    parents = [row.flops for row in results if row.model.startswith("parent:")]
    return float(parents[0] if parents else min(row.flops for row in results))


def measure_of(results: Sequence[Result]) -> str:
    """What is measured besides the tasks: `joint` accuracy, `distance` from the parents' outputs, or nothing, `""`."""
    if all(row.joint is not None for row in results):
        return "joint"
    return "distance" if all(row.distance is not None for row in results) else ""


def setting_of(row: Result, name: str) -> Any:
    """An option of a merge; `None` for parents."""
    return row.settings.get(name)


def label_of(method: str) -> str:
    """The name of a method; controls are marked."""
    known = METHODS.get(method)
    return f"control:{method}" if known and known.control else method


def cut_of(row: Result) -> str:
    """The cut of a merge, for the table."""
    return (setting_of(row, "cut") or NO_CUT) if row.merged else "-"


def size_of(row: Result) -> str:
    """The width or the budget of a merge, for the table."""
    if not row.merged:
        return "-"
    budget = setting_of(row, "flops_budget")
    return f"<={budget:g}x" if budget else f"{setting_of(row, 'width'):g}"


def options_of(row: Result) -> str:
    """The options of a merge that are not at their defaults and have no column of their own."""
    fields = {name: field.default for name, field in Options.model_fields.items() if name not in OWN_COLUMNS}
    chosen = {name: row.settings.get(name, default) for name, default in fields.items()}
    changed = {name: value for name, value in chosen.items() if value != fields[name]}
    return " ".join(name if value is True else f"{name}={value}" for name, value in changed.items())


def _score(row: Result, name: str) -> str:
    """A score of a result, with its deviation over pairs if there are several."""
    value = getattr(row, name)
    if value is None:
        return "-"
    shown = "{:.3f}" if name == "distance" else "{:.1f}"
    factor = 1 if name == "distance" else 100
    cell = shown.format(factor * value)
    return f"{cell} ± {shown.format(factor * row.deviation[name])}" if name in row.deviation else cell


def _title(row: Result) -> str:
    """A merge by its settings."""
    settings = f"{label_of(row.model)}, cut {cut_of(row)}, calibrate {setting_of(row, 'calibrate')}"
    return settings if size_of(row) == "1" else f"{settings}, size {size_of(row)}"

"""The results of a comparison as files: tables in text, Markdown and LaTeX, CSV, JSON and a plot."""

import csv
import io
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.comparison.columns import columns, cut_of, failures, setting_of
from hf_zipit.comparison.plot import plot_comparison
from hf_zipit.errors import OptionError, OutputError
from hf_zipit.evaluation.results import Result, mean
from hf_zipit.files.folders import is_empty
from hf_zipit.files.place import check_place
from hf_zipit.files.single import write_file
from hf_zipit.text import latex, latex_table, markdown_cell, markdown_table, table

ROWS = "rows.jsonl"
PICTURE = "results.png"
TABLES = ("results.csv", "results.json", "results.md", "results.tex")
FILES = (ROWS, *TABLES, PICTURE)
_log = logging.getLogger("hf_zipit")


def check_report(folder: str | Path, pairs: Collection[str] = ()) -> None:
    """Check that a folder can hold the report of a comparison: it is new, empty, or holds an earlier report.

    Args:
        folder: The folder.
        pairs: Names of the folders in it that hold the report of one pair each; they are checked as well.

    Raises:
        OptionError: it holds something else, such as a model.
        OutputError: it cannot be written.
    """
    folder = Path(folder)
    check_place(folder)
    if not folder.exists() or is_empty(folder):
        return
    known = (*FILES, *pairs)
    other = sorted(path.name for path in folder.iterdir() if path.name not in known and not path.name.startswith("."))
    reported = any((folder / name).is_file() for name in (*FILES, *(f"{pair}/{ROWS}" for pair in pairs)))
    if "config.json" in other or (other and not reported):
        raise OptionError(
            f"{folder} holds no earlier report, but {', '.join(other[:3])}: choose another folder for the report"
        )
    for pair in pairs:
        check_report(folder / pair)


def comparison_table(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """A table with the scores and costs of each merge, and a line for each that failed; see `columns`.

    Args:
        results: The results of the merges, the parents and the ensemble.
        tasks: Names of the tasks, in order.
    """
    reasons = failures(results)
    return "\n".join([table(*columns(results, tasks)), *([""] if reasons else []), *reasons])


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
    """Write the results as CSV, JSON, Markdown and LaTeX and, if matplotlib is installed, as a picture.

    Args:
        results: The results of the merges, the parents and the ensemble.
        tasks: Names of the tasks, in order.
        folder: The folder to write to; created if needed.

    Returns:
        The files that were written.
    """
    folder = Path(folder)
    texts = (
        _csv(results, tasks),
        json.dumps([plain(row) for row in results], indent=2),
        _markdown(results, tasks),
        _latex(results, tasks),
    )
    made = dict(zip((folder / name for name in TABLES), texts, strict=True))
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


def _markdown(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The table as Markdown, and a list of the merges that failed."""
    reasons = [f"- {markdown_cell(reason)}" for reason in failures(results)]
    return "\n".join([markdown_table(*columns(results, tasks)), *([""] if reasons else []), *reasons, ""])


def _latex(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The table as LaTeX, with the merges that failed in comments."""
    reasons = [f"% {latex(reason)}" for reason in failures(results)]
    begin = r"% \usepackage{booktabs}"
    return "\n".join([begin, *reasons, latex_table(*columns(results, tasks)), ""])


def _csv(results: Sequence[Result], tasks: Sequence[str]) -> str:
    """The results as CSV, one line for each row."""
    names = ["method", "cut", "width", "flops_budget", "calibrate", "seed", *(f"task {task}" for task in tasks)]
    measured = ["average", "joint", "distance", "flops", "parameters", "seconds"]
    paired = any(row.pairs for row in results)
    spread = ["average", "joint", "distance"] if paired else []
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    extra = [*(f"{name} deviation" for name in spread), *(["pairs"] if paired else [])]
    writer.writerow([*names, *measured, "correlation", *extra, "error"])
    for row in results:
        settings = [setting_of(row, name) for name in ("width", "flops_budget", "calibrate", "seed")]
        scores = [row.tasks.get(task) for task in tasks]
        values = [None if row.error else getattr(row, name) for name in measured]
        correlation = mean(row.correlation) if row.correlation else None
        more = [*(row.deviation.get(name) for name in spread), *([row.pairs] if paired else [])]
        cells = [row.model, cut_of(row), *settings, *scores, *values, correlation, *more, row.error]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()

"""Comparisons of several pairs of models: the file that names them, and the mean of their results."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import Field, field_validator

from hf_zipit.comparison.columns import measure_of
from hf_zipit.comparison.report import FILES
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.results import Result
from hf_zipit.files import documents
from hf_zipit.files.references import located
from hf_zipit.settings import Settings, shown

PLACES: dict[str, Any] = {"lists": ("models", "data", "eval_data"), "paths": ()}
SCORES = ("average", "joint", "distance")
MEASURES = (*SCORES, "flops", "parameters", "seconds")
KINDS = {"joint": "accuracy", "distance": "agreement with the parents", "": "metrics of the tasks"}
VARIES = "varies"  # a setting that pairs chose differently
_FOLDER = re.compile(r"[A-Za-z0-9][\w.-]*")


class Pair(Settings):
    """Models that are merged with each other, and their images.

    >>> Pair(models=["user/a", "user/b"], data=["user/images"]).eval_data is None
    True
    """

    name: str = Field("", description="Name of its folder in the report. Default: pair-1, pair-2, and so on.")
    models: list[str] = Field(description="Hub ids or folders.", min_length=2)
    data: list[str] = Field(description="Images, as `--data`.", min_length=1)
    eval_data: list[str] | None = Field(None, description="Images for the evaluation, as `--eval-data`.")

    @field_validator("name")
    @classmethod
    def _of_a_folder(cls, value: str) -> str:
        if value and not _FOLDER.fullmatch(value):
            raise OptionError(
                f"the pair's name {shown(value)} cannot name a folder: use letters, digits, '.', '-', '_'"
            )
        if value in FILES:
            raise OptionError(f"the pair's name {shown(value)} is that of a file of the report: choose another one")
        return value


def read_pairs(file: str | Path) -> list[Pair]:
    """Read a file of pairs: a list, in YAML or JSON, of mappings with the keys of `Pair`.

    Relative paths in it are relative to its folder.

    Args:
        file: The file.

    Raises:
        OptionError: The file cannot be read, an entry is malformed, two have one name, or their numbers of models
            differ.
    """
    file = Path(file)
    try:
        values = documents.load(documents.read_text(file))
    except ValueError as error:
        raise OptionError(f"cannot read the pairs in {file}: {error}") from None
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise OptionError(f"{file} holds no pairs: give a list of entries with the keys models and data")
    pairs = []
    for number, value in enumerate(values, 1):
        try:
            placed = located({str(key): part for key, part in value.items()}, file.parent.absolute(), **PLACES)
            pairs.append(Pair(**{"name": f"pair-{number}", **placed}))
        except OptionError as error:
            raise OptionError(f"{file}, pair {number}: {error}") from None
    names = [pair.name for pair in pairs]
    if len(set(names)) < len(names):
        raise OptionError(f"{file}: the names of the pairs must differ: {', '.join(names)}")
    if len({len(pair.models) for pair in pairs}) > 1:
        raise OptionError(f"{file}: the pairs have different numbers of models, so there is no mean of their results")
    return pairs


def mean_results(reports: Sequence[Sequence[Result]], names: Sequence[str]) -> list[Result]:
    """The mean of the results of several pairs, with the sample standard deviation of the scores.

    The merges of all pairs are those of one grid, in its order. A merge that failed for some pairs is the mean of the
    others, and has a further row for each failure.

    Args:
        reports: For each pair, the results that `Comparison.run` returns.
        names: Names of the pairs.

    Raises:
        OptionError: The pairs are measured in different ways, as some have labels and others have none.
    """
    measures = [measure_of([row for row in report if not row.error]) for report in reports]
    if len(set(measures)) > 1:
        said = ", ".join(f"{name}: {KINDS[measure]}" for name, measure in zip(names, measures, strict=True))
        raise OptionError(f"there is no mean over the pairs, as they are measured in different ways ({said})")
    found: dict[str, list[tuple[str, Result]]] = {}
    for name, report in zip(names, reports, strict=True):
        parents = 0
        for number, row in enumerate(report):
            key = f"{number} {row.model}"
            if not row.merged:
                parents += row.model != "ensemble"
                key = f"ensemble {row.settings}" if row.model == "ensemble" else f"parent:{parents}"
            found.setdefault(key, []).append((name, row))
    rows, failed = [], []
    for key, members in found.items():
        measured = [row for _, row in members if not row.error]
        if measured:
            row = _mean(measured)
            rows.append(row if row.merged or row.model == "ensemble" else replace(row, model=key))
        failed += [replace(row, error=f"{name}: {row.error}") for name, row in members if row.error]
    return [*rows, *failed]


def _mean(rows: Sequence[Result]) -> Result:
    """The mean of the results of one merge, or of one parent, over the pairs."""
    means: dict[str, float] = {}
    deviation: dict[str, float] = {}
    for name in MEASURES:
        values = [getattr(row, name) for row in rows]
        if all(value is not None for value in values):
            means[name] = fmean(values)
            if name in SCORES and len(values) > 1:
                deviation[name] = stdev(values)
    first = rows[0]
    settings = {
        name: value if all(_same(row.settings.get(name), value) for row in rows) else VARIES
        for name, value in first.settings.items()
    }
    spaces = [name for name in first.correlation if all(name in row.correlation for row in rows)]
    correlation = {name: fmean(row.correlation[name] for row in rows) for name in spaces}
    return Result(
        first.model,
        round(means.pop("flops")),
        round(means.pop("parameters")),
        settings=settings,
        correlation=correlation,
        pairs=len(rows),
        deviation=deviation,
        **means,  # type: ignore[arg-type]
    )


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are equal as they are stored."""
    return json.dumps(one) == json.dumps(other)

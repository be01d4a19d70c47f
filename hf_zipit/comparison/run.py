"""Comparisons of many merges of the same models on the same statistics; an interrupted comparison can be resumed."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from inspect import unwrap
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from hf_zipit.assembly.parents import Merged
from hf_zipit.calibration.refit.joint import refit_ensemble
from hf_zipit.comparison.measure import open_evaluation
from hf_zipit.comparison.report import ROWS, check_report
from hf_zipit.errors import OptionError, OutputError, ZipItError
from hf_zipit.evaluation.classification import Classification
from hf_zipit.evaluation.fidelity import feature_correlation
from hf_zipit.evaluation.results import Result, relative
from hf_zipit.matching.registry import ATTRIBUTES, AUTO
from hf_zipit.merging.balance import accuracy_on, merge_settled
from hf_zipit.merging.merger import Merger
from hf_zipit.progress import progress
from hf_zipit.recipe import Recipe
from hf_zipit.statistics.content import content_of, versions

JOINT = "refit-joint"
_log = logging.getLogger("hf_zipit")


class Comparison:
    """Makes and evaluates merges, and writes one row per merge to a folder as soon as it is done.

    With labels a row holds accuracies, and with targets each task's own metrics. Otherwise it holds the agreement with
    the parents' predictions and the distance from their outputs. Every row has FLOPs, parameters, the time of the merge
    in seconds, and the correlation of its features with the parents'.

    Results that several merges share (statistics, matches, the refit before a `refit-joint`) are computed once, and
    their time counts for the first merge that needs them. The key of a row is a hash of everything that determines it,
    so only missing rows are computed.

    Args:
        merger: the models, with the images for the statistics.
        out: the folder; rows of other comparisons in it are left alone.
        data: images for the evaluation, as for `evaluate`.
        targets: images with targets instead, for tasks with outputs of different kinds.
        num_images: images per data set for the evaluation: one number for all, or one each.
        batch_size: images per forward pass of the evaluation.
        save: called with the recipe and the model of each new merge.

    Raises:
        OptionError: `out` holds something else than an earlier report, or one of the models is a merge of several
            tasks.
        OutputError: `out` cannot be written.
        DataError: the images cannot be read, or their labels belong to no task.

    >>> comparison = Comparison(Merger(models, data), "report", data)  # doctest: +SKIP
    >>> rows = comparison.run(Grid(["zip", "permute"]).recipes(comparison.merger))  # doctest: +SKIP
    """

    def __init__(
        self,
        merger: Merger,
        out: str | Path,
        data: Any = None,
        *,
        targets: Any = None,
        num_images: int | Sequence[int] | None = None,
        batch_size: int = 64,
        save: Callable[[Recipe, Merged], None] | None = None,
    ) -> None:
        self.merger = merger
        self.out = Path(out)
        self.save = save
        self.main = merger.passes.accelerator.is_main_process
        if self.main:
            check_report(self.out)
        if any(len(source.tasks) != 1 for source in merger.parents.sources):
            raise OptionError("one of the models is a merge, so it has no single output; compare its parents instead")
        self.evaluation = open_evaluation(merger, data, targets, num_images, batch_size)
        self.base = {
            "versions": versions(),
            "models": [content_of(whole.model) for whole in merger.parents.wholes],
            "tasks": merger.tasks,
            "seed": merger.recipe.seed,
            "spec": merger.parents.binding.spec.text,
            "data": [part.fingerprint() for part in merger.passes.images],
            "batch_size": merger.passes.batch_size,
            "evaluation": [type(self.evaluation).__name__, self.evaluation.fingerprint()],
        }
        self.known = self._read()

    def run(self, wanted: Sequence[Recipe]) -> list[Result]:
        """Make the missing merges. Returns the rows of all merges in order, then those of the parents and the ensemble.

        Where a merge is calibrated for the joint prediction, the ensemble is as well, in a further row.

        The row of a merge that fails says why, in `error`; it is tried again when the comparison is resumed.
        """
        self._observe([recipe for recipe in wanted if self._key(self._decisions(recipe)) not in self.known])
        parents = self.parents()
        if any(recipe.calibrate == JOINT for recipe in wanted):
            parents += self._fitted_ensemble()
        found = [self._row(recipe) for recipe in progress(wanted, "Comparing", self.merger.passes.accelerator)]
        return [relative(row, parents) if row.scores else row for row in [*found, *parents]]

    def parents(self) -> list[Result]:
        """The rows of the parents and their ensemble, evaluated once by the main process."""
        wholes = self.merger.parents.wholes
        names = [f"parent:{task}" for task in self.merger.tasks] + ["ensemble"]
        keys = [self._key(name) for name in names]
        if any(key not in self.known for key in keys):
            rows = self.evaluation.of_parents(wholes) if self.main else [Result(name, 0, 0) for name in names]
            for key, row in zip(keys, rows, strict=True):
                self._keep(key, row)
        return [self.known[key] for key in keys]

    def _fitted_ensemble(self) -> list[Result]:
        """The row of the ensemble with classifiers that are fitted as those of a merge are; see `refit_ensemble`.

        There is none unless joint accuracies are measured, on models with a data set each and linear classifiers.
        """
        merger = self.merger
        if not (isinstance(self.evaluation, Classification) and self.evaluation.joint):
            return []
        key = self._key(["ensemble", JOINT])
        if key not in self.known:
            sources = merger.parents.sources
            nets = refit_ensemble(sources, merger.parents.binding, merger.passes, merger.recipe.seed)
            if nets is None:
                return []
            fitted = [replace(source, model=net) for source, net in zip(sources, nets, strict=True)]
            row = self.evaluation.of_parents(fitted)[-1] if self.main else Result("ensemble", 0, 0)
            self._keep(key, replace(row, settings={"calibrate": JOINT}))
        return [self.known[key]]

    def _observe(self, wanted: Sequence[Recipe]) -> None:
        """Collect in one pass the statistics of all spaces that the merges need."""
        parents = self.merger.parents
        for compat in (False, True):
            cuts = {recipe.cut for recipe in wanted if recipe.needs_statistics and recipe.compat == compat}
            names = {name for cut in cuts for name in parents.spaces(parents.plan(cut))}
            self.merger.statistics(names, compat)

    def _row(self, recipe: Recipe) -> Result:
        """The row of one merge, known or new."""
        key = self._key(self._decisions(recipe))
        if key not in self.known:
            begun = time.perf_counter()
            try:
                merged, settled = merge_settled(self.merger, recipe)
            except ZipItError as error:
                _log.warning("%s, cut %s: %s", recipe.method, recipe.cut or "none", error)
                return Result(recipe.method, 0, 0, settings=recipe.decisions, error=str(error))
            seconds = time.perf_counter() - begun
            if self.save is not None:
                self.save(settled, merged)
            cut = {"cut": merged.config.cut}  # a budget may have chosen it
            settings = {**settled.decisions, **cut}
            row = replace(self.measure(merged, settled), model=recipe.method, seconds=seconds, settings=settings)
            self._keep(key, row)
        return self.known[key]

    def measure(self, merged: Merged, recipe: Recipe) -> Result:
        """The row of a merged model: scores, costs, and correlation of its features with the parents'."""
        found = Result(recipe.method, 0, 0)
        if self.main or self.evaluation.shared:
            found = self.evaluation.result(recipe.method, merged)
        merger = self.merger
        matches = merger.match(merger.plan(recipe), recipe)
        if merger.passes.images:
            sources, binding = merger.parents.sources, merger.parents.binding
            found = replace(found, correlation=feature_correlation(merged, sources, binding, matches, merger.passes))
        return found

    def _decisions(self, recipe: Recipe) -> list[Any]:
        """What decides a row: the merge, the content of the labelled images that choose its balance, and its base."""
        labelled = recipe.balance_data and accuracy_on(self.merger, recipe.balance_data).fingerprint()
        differences = self.merger.differences
        based = recipe.how.based or (recipe.method == AUTO and differences.given is not None)
        decisions = [recipe.decisions, labelled, based and content_of(differences.base.model)]
        own = recipe.how.function
        if isinstance(own, str):
            return decisions
        how = {name: getattr(recipe.how, name) for name in ATTRIBUTES}
        return [*decisions, content_of(unwrap(own)), repr(how)]  # the code of somebody else may change

    def _key(self, decisions: Any) -> str:
        """A hash of the models, the images and the options of a row."""
        return hashlib.sha256(json.dumps([self.base, decisions]).encode()).hexdigest()[:32]

    def _read(self) -> dict[str, Result]:
        """Read the existing rows in the main process, and share them with the others; incomplete lines are skipped."""
        rows: list[tuple[str, Result]] = []
        file = self.out / ROWS
        if self.main and file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    rows.append((entry["key"], Result(**entry["row"])))
                except (ValueError, KeyError, TypeError):
                    continue
        shared = [rows]
        if self.merger.passes.accelerator.num_processes > 1:
            broadcast_object_list(shared)
        return dict(shared[0])

    def _keep(self, key: str, row: Result) -> None:
        """Remember a row, and append it to the file in the main process."""
        self.known[key] = row
        if not self.main:
            return
        file = self.out / ROWS
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            broken = file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
            with file.open("a", encoding="utf-8") as out:
                out.write(("\n" if broken else "") + json.dumps({"key": key, "row": asdict(row)}) + "\n")
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror or error}. The rows before it are kept") from error

"""Many merges of one set of models on the same statistics, side by side; a comparison that was cut short goes on."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from hf_zipit import __version__
from hf_zipit.assembly.plan import Plan
from hf_zipit.comparison.grid import Trial
from hf_zipit.costs import count_flops
from hf_zipit.data.batches import Passes, remembered
from hf_zipit.data.hashing import digest
from hf_zipit.data.images import Images, open_all
from hf_zipit.data.rows import TEST
from hf_zipit.errors import OptionError, ZipItError
from hf_zipit.evaluation.classification import Evaluation
from hf_zipit.evaluation.fidelity import distance, feature_correlation
from hf_zipit.merging.balance import merge_balanced
from hf_zipit.merging.merger import Merged, Merger
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.progress import progress
from hf_zipit.specs.cuts import resolve_cut

ROWS = "rows.jsonl"
_log = logging.getLogger("hf_zipit")
Result = dict[str, Any]


class Comparison:
    """Merges, evaluates and keeps a line for every merge in a folder as soon as it is done.

    With labels a row holds accuracies, else the agreement with the parents' answers and the distance from their
    outputs; always FLOPs, parameters, the seconds of the merge and the correlation of features with the parents'. What
    several merges have in common (statistics, matches, the refit before a `refit-joint`) is computed once, in the
    seconds of the first. A row is known again by everything that decides it, so that only missing ones are made.

    Args:
        merger: the models, with the images for the statistics.
        out: the folder; rows of other comparisons in it are left alone.
        data: images for the evaluation, as for `evaluate`.
        num_images: of them, for each data set.
        batch_size: images per forward pass of the evaluation.
        save: called with each merge that is made.

    Raises:
        OptionError: `out` is no folder.
        DataError: the images cannot be read, or their labels belong to no task.

    >>> comparison = Comparison(Merger(models, data), "report", data)  # doctest: +SKIP
    >>> rows = comparison.run(trials(comparison.merger, ["all"], [None], ["batchnorm"], Options()))  # doctest: +SKIP
    """

    def __init__(
        self,
        merger: Merger,
        out: str | Path,
        data: Any,
        *,
        num_images: int | Sequence[int] | None = None,
        batch_size: int = 64,
        save: Callable[[Trial, Merged], None] | None = None,
    ) -> None:
        self.save = save
        self.merger, self.out, self.main = merger, Path(out), merger.passes.accelerator.is_main_process
        if self.out.exists() and not self.out.is_dir():
            raise OptionError(f"{out} is not a folder: choose another place for the report")
        if merger.shared is not None:
            raise OptionError("compare measures classifiers: merge models with other outputs, and use `hf-zipit eval`")
        if any(len(source.tasks) != 1 for source in merger.sources):
            raise OptionError("a merge among the models has no single output to compare with: compare its own parents")
        images = _opened(merger, data, num_images)
        merger.passes.images = [remembered(part) for part in merger.passes.images]
        self.size, self.evaluation = merger.sources[0].input_size, None
        if all(any(label is not None for label in part.labels) for part in images):
            self.evaluation = Evaluation(merger.heads, images, self.size, batch_size, str(merger.passes.device))
        self.passes = Passes(images, batch_size, str(merger.passes.device))
        self.base = {
            "version": __version__,
            "models": [digest(state.items()) for state in merger.states],
            "tasks": merger.tasks,
            "spec": merger.binding.spec.text,
            "data": [part.fingerprint() for part in merger.passes.images],
            "batch_size": merger.passes.batch_size,
            "evaluation": [part.fingerprint() for part in images],
            "labels": [part.labels for part in images] if self.evaluation else None,
        }
        self.known = self._read()

    def run(self, wanted: Sequence[Trial]) -> list[Result]:
        """The rows of the merges, in order, then those of the parents and their ensemble."""
        self._observe([trial for trial in wanted if self._key(trial.recipe) not in self.known])
        found = [self._row(trial) for trial in progress(wanted, "Comparing", self.merger.passes.accelerator)]
        return [row for row in found if row is not None] + self.parents()

    def parents(self) -> list[Result]:
        """The rows of the parents and their ensemble, evaluated once."""
        key = self._key("parents")
        if key not in self.known:
            rows = []
            if self.evaluation and self.main:
                rows = [row.to_dict() for row in self.evaluation.rows_of_parents(self.merger.sources)]
            elif self.main:
                rows = self._costs_of_parents()
            self._keep({"key": key, "rows": rows})
        rows = self.known[key]["rows"]
        return [{"method": row["model"], "cut": None, "calibrate": None, **row} for row in rows]

    def _observe(self, wanted: Sequence[Trial]) -> None:
        """Read the statistics of every space that a merge will ask for, in one pass; a budget asks for all."""
        merger = self.merger
        for compat in (False, True):
            cuts = {t.cut for t in wanted if t.options.needs_statistics and t.options.compat == compat}
            plans = [Plan(merger.binding, resolve_cut(merger.binding, cut), cut) for cut in cuts]
            merger.statistics({name for plan in plans for name in merger.touched(plan)}, compat)

    def _row(self, trial: Trial) -> Result | None:
        key = self._key(trial.recipe)
        if key not in self.known:
            begun = time.perf_counter()
            try:
                merged, trial = self._merged(trial)
            except ZipItError as error:
                _log.warning("%s, cut %s: %s", trial.options.method, trial.cut or "none", error)
                return None
            seconds = time.perf_counter() - begun
            if self.save is not None:
                self.save(trial, merged)
            row = {**trial.recipe, "cut": merged.config.cut, "seconds": seconds}  # a budget chooses the cut
            self._keep({"key": key, **row, **self.measure(merged, trial)})
        return self.known[key]

    def _merged(self, trial: Trial) -> tuple[ZipItForImageClassification, Trial]:
        """The merge, and the trial with the balance that was chosen."""
        if not trial.automatic:
            return self.merger.merge(trial.options, cut=trial.cut, calibrate=trial.calibrate), trial
        merged, options = merge_balanced(self.merger, trial.options, cut=trial.cut, calibrate=trial.calibrate)
        return merged, replace(trial, options=options, automatic=False)

    def measure(self, merged: ZipItForImageClassification, trial: Trial) -> Result:
        """What a merged model is worth: accuracies or distance, costs, and correlation of features."""
        out: Result = {}
        if self.evaluation is None:
            found = distance(merged, self.merger.sources, self.passes)
            out["tasks"] = {task: value.agreement for task, value in found.items()}
            out["average"] = sum(out["tasks"].values()) / len(found)
            out["distance"] = sum(value.error for value in found.values()) / len(found)
            out["flops"] = count_flops(merged, self.size)
            out["parameters"] = sum(parameter.numel() for parameter in merged.parameters())
        elif self.main:
            (outputs,) = self.evaluation.outputs([(merged, None)])
            out = self.evaluation.row(trial.options.method, outputs, self.evaluation.cost(merged)).to_dict()
            del out["model"]
        merger = self.merger
        plan, widths = merger.plan(trial.options, trial.cut)
        matches = merger.match(plan, trial.options, widths)
        if merger.passes.images:
            out["correlation"] = feature_correlation(merged, merger.sources, merger.binding, matches, merger.passes)
        return out

    def _costs_of_parents(self) -> list[Result]:
        sources, tasks = self.merger.sources, self.merger.tasks
        flops = [count_flops(source.model, self.size) for source in sources]
        sizes = [sum(parameter.numel() for parameter in source.model.parameters()) for source in sources]
        rows = [
            {
                "model": f"parent:{task}",
                "tasks": {task: 1.0},
                "average": 1.0,
                "distance": 0.0,
                "flops": f,
                "parameters": p,
            }
            for task, f, p in zip(tasks, flops, sizes, strict=True)
        ]
        whole = {"tasks": dict.fromkeys(tasks, 1.0), "average": 1.0, "distance": 0.0}
        return [*rows, {"model": "ensemble", **whole, "flops": sum(flops), "parameters": sum(sizes)}]

    def _key(self, recipe: Any) -> str:
        return hashlib.sha256(json.dumps([self.base, recipe]).encode()).hexdigest()[:32]

    def _read(self) -> dict[str, Result]:
        """The rows that are there, read by the main process for all; a line cut short is passed over."""
        rows: list[Result] = []
        file = self.out / ROWS
        if self.main and file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    continue
        shared = [rows]
        if self.merger.passes.accelerator.num_processes > 1:
            broadcast_object_list(shared)
        return {row["key"]: row for row in shared[0]}

    def _keep(self, row: Result) -> None:
        self.known[row["key"]] = row
        if not self.main:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / ROWS
        broken = file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size
        with file.open("a", encoding="utf-8") as out:
            out.write(("\n" if broken else "") + json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())


def _opened(merger: Merger, data: Any, num_images: int | Sequence[int] | None) -> list[Images]:
    """The images for the evaluation; those for the statistics where none are given."""
    if data is None:
        return list(merger.passes.images)
    transform = merger.sources[0].transform
    images = open_all(data, len(merger.sources), transform, splits=TEST, num_images=num_images, seed=merger.seed)
    return [remembered(part) for part in images]

"""A diagnosis: trial merges at several cuts and widths on few images, each judged on images that it has not seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.diagnosis.candidates import FULL, Candidate, candidates, ends_of_stages
from hf_zipit.diagnosis.survival import by_stage, survival
from hf_zipit.errors import OptionError
from hf_zipit.merging.balance import merge_settled
from hf_zipit.merging.judge import judge
from hf_zipit.merging.merge import check_recipe
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.verdict import FEW, MARGIN, TaskVerdict
from hf_zipit.progress import progress
from hf_zipit.recipe import Recipe
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import Source

IMAGES = 300  # of each data set, on which trial merges are fitted
BUDGETS = (1.0, 1.25, 1.5)  # FLOPs of all tasks, as multiples of one parent's
CHANCE = 0.03  # of agreement above chance, below which a model teaches nothing
CLOSE = 0.005  # of the accuracy kept, within which the cheaper trial is recommended
ROUNDING = 0.01  # of FLOPs: classifiers of further tasks do not break a budget


@dataclass(frozen=True)
class Trial:
    """One way to merge, and what to expect of it.

    Attributes:
        name: as flags of `hf-zipit merge`; that of a full merge is `FULL`.
        cut: where the trunk ends; `None` if only the classifiers follow.
        width: merged units per unit of one model.
        flops: of one image for all tasks, as a multiple of one parent's.
        kept: mean share of the parents' accuracy that the merge should keep.
        tasks: how each task fares.
    """

    name: str
    cut: str | None
    width: float
    flops: float
    kept: float
    tasks: dict[str, TaskVerdict]


@dataclass(frozen=True)
class Diagnosis:
    """What a merge of some models can be worth.

    Attributes:
        models: the names of the models.
        relation: how they are related, in words.
        method: the method of the trials, and `calibrate`, their calibration.
        calibrate: see `method`.
        control: the parent whose trunk does best alone, with the heads of all tasks fitted to it.
        control_kept: the mean share of the parents' accuracy that it keeps.
        trials: the ways to merge, in the order in which they were tried.
        survival: width -> stage -> for each model, the share of the variance of its units that the merged ones hold.
        recommended: budget -> the name of the best trial within it.
        advice: what to do, one sentence each.
    """

    models: tuple[str, ...]
    relation: str
    method: str
    calibrate: str
    control: str
    control_kept: float
    trials: tuple[Trial, ...]
    survival: dict[str, dict[str, list[float]]]
    recommended: dict[str, str]
    advice: tuple[str, ...]

    @property
    def merge(self) -> bool:
        """Whether any of the trials is better than one parent's trunk."""
        return any(trial.kept >= self.control_kept + MARGIN for trial in self.trials)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {**asdict(self), "merge": self.merge}


def diagnose(
    sources: Sequence[str | Path | nn.Module | Source],
    data: Any,
    recipe: Recipe | None = None,
    *,
    access: Access = NOTHING,
    **options: Any,
) -> Diagnosis:
    """Find out what a merge of some models can be worth, and where to cut it or how wide to make it.

    Trial merges are made on few images and judged on others; nothing is written, and no label is read. Statistics and
    controls are computed once for all of them.

    Args:
        sources: two or more models, as for `hf_zipit.merge`.
        data: images, as for `hf_zipit.merge`.
        recipe: options of the merges; by default, those of `hf_zipit.merge`. It has no cut, width or budget.
        access: token and permissions for reading models and images.
        options: options that override those of the recipe.

    Raises:
        OptionError: there are too few images to hold any out, an option is out of range, or a cut, a width or a budget
            is given, which a diagnosis varies.
        SourceError, SpecError, DataError: as `hf_zipit.merge` does.

    >>> diagnose(["user/pets", "user/birds"], "user/animals").recommended["1.25"]  # doctest: +SKIP
    '--cut layer3'
    """
    recipe = (recipe or Recipe()).changed(**options)
    if recipe.cut is not None or recipe.width != 1 or recipe.flops_budget is not None:
        raise OptionError("a diagnosis tries cuts and widths: leave out cut, width and flops_budget")
    check_recipe(recipe, len(sources), data)
    few = recipe.changed(sources=[], data=None, verdict=True)
    opened = [load_source(source, access=access) for source in sources]
    merger = Merger(opened, data, few, token=access.token, access=access, most=IMAGES)
    if merger.held_out is None:
        raise OptionError("a diagnosis holds images out, and there are too few: give 100 of each data set or more")
    merged, settled = merge_settled(merger, few.changed(cut=merger.parents.fixed_cut))
    full = judge(merger, merged, settled)
    ways = candidates(merger, settled)
    trials = []
    for way in progress(ways, "Trying cuts and widths", merger.passes.accelerator):
        verdict = full if way.name == FULL else judge(merger, merger.merge(way.recipe), way.recipe)
        assert verdict is not None
        trials.append(
            Trial(way.name, way.recipe.cut, way.recipe.width, round(way.flops, 3), verdict.kept, verdict.tasks)
        )
    assert full is not None
    assert full.control is not None
    assert full.control_kept is not None
    return Diagnosis(
        models=tuple(source.name for source in merger.parents.wholes),
        relation=str(merger.relation),
        method=settled.method,
        calibrate=settled.calibrate,
        control=full.control,
        control_kept=full.control_kept,
        trials=tuple(trials),
        survival=_survival(merger, ways),
        recommended=recommended(trials),
        advice=tuple(advice(trials, full.control, full.control_kept)),
    )


def recommended(trials: Sequence[Trial]) -> dict[str, str]:
    """For each budget, the trial that keeps most within it; of those that keep almost as much, the cheapest.

    Args:
        trials: the ways to merge.
    """
    found = {}
    for budget in BUDGETS:
        within = [trial for trial in trials if trial.flops <= budget + ROUNDING]
        if within:
            most = max(trial.kept for trial in within)
            best = min((trial for trial in within if trial.kept >= most - CLOSE), key=lambda trial: trial.flops)
            found[f"{budget:g}"] = best.name
    return found


def advice(trials: Sequence[Trial], control: str, control_kept: float) -> list[str]:
    """What to do, one sentence each.

    Args:
        trials: the ways to merge, a full merge first.
        control: the parent whose trunk does best alone.
        control_kept: what it keeps.
    """
    first, best = trials[0], max(trials, key=lambda trial: trial.kept)
    out = []
    if best.kept < control_kept + MARGIN:
        out.append(
            f"do not merge these: the trunk of {control} alone, with the heads of all tasks fitted to it, keeps "
            f"{100 * control_kept:.1f} % of the parents' accuracy, and no trial more than {100 * best.kept:.1f} %"
        )
    elif first.kept < control_kept + MARGIN:
        out.append(
            f"a full merge is no better than the trunk of {control} alone with the heads of all tasks fitted to it; "
            f"{best.name} is, for {best.flops:.2f} times the FLOPs of one model"
        )
    for task, one in best.tasks.items():
        if one.images < FEW:
            out.append(f"nothing is known of {task}: only {one.images} held-out images look like its own")
        elif one.agreement is not None and one.chance is not None and one.agreement < one.chance + CHANCE:
            out.append(
                f"on {task} even the best trial answers as its parent hardly more often than chance: perhaps that "
                "model has learned nothing that holds for other images; then leave it out"
            )
    return out


def _survival(merger: Merger, ways: Sequence[Candidate]) -> dict[str, dict[str, list[float]]]:
    """What survives of each stage, at the widths of the full merges among the candidates."""
    parents = merger.parents
    seen: set[str] = set()
    stages = {}
    for cut in ends_of_stages(merger):
        names = parents.spaces(parents.plan(cut))
        stages[cut] = names - seen
        seen |= names
    found = {}
    for way in ways:
        if way.name == FULL or way.recipe.width != 1:
            matches = merger.match(merger.plan(way.recipe), way.recipe)
            statistics = merger.statistics(matches)
            shares = survival(matches, statistics, len(parents.sources))
            found[f"{way.recipe.width:g}"] = by_stage(shares, stages)
    return found

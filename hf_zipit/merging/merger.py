"""Any number of merges of the same models: observe, match, transform, build, calibrate."""

import copy
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from hf_zipit.assembly.kinds import open_parents
from hf_zipit.assembly.parents import Merged, heads_of
from hf_zipit.backbones.merges import check_cut
from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.methods import CALIBRATIONS, stages_of
from hf_zipit.data.batches import Passes, remembered
from hf_zipit.data.dataset import Images
from hf_zipit.data.draw import USEFUL
from hf_zipit.data.images import open_all
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.fidelity import distance, same_everywhere
from hf_zipit.heads.match import matches_of_heads
from hf_zipit.matching.dense import DenseMatcher, aligning
from hf_zipit.matching.matcher import Matcher
from hf_zipit.matching.options import Options
from hf_zipit.matching.registry import AUTO
from hf_zipit.merging.automatic import Choice, choose
from hf_zipit.merging.base import Base
from hf_zipit.merging.dense import assembled, dense_spaces
from hf_zipit.merging.differences import Differences
from hf_zipit.merging.observe import Observations
from hf_zipit.merging.provenance import equip, places_of, provenance, task_names
from hf_zipit.merging.relation import Relation, relation
from hf_zipit.merging.sanity import check_finite, check_models_run
from hf_zipit.merging.sizing import budget_plan, sized_plan
from hf_zipit.recipe import ALL, Recipe
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.access import Access
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.transform.heads import Matches

_log = logging.getLogger("hf_zipit")
Made = TypeVar("Made")
PER_MERGE = frozenset({*Options.model_fields, "cut", "calibrate", "balance_data"})  # what may differ between merges


class Merger:
    """Models to merge, opened once with their images; all merges use the same statistics.

    Args:
        sources: Hub ids, folders, modules or opened sources; none of them is changed. One alone can become smaller.
        data: images, as for `merge`. Without images, only methods and calibrations that need none can be used.
        base: the model that they were fine-tuned from, for methods that need it; by default, that of the recipe, or the
            one that all cards name.
        recipe: the options of the run (`num_images`, `skip_bad_images`, `label_column`, `batch_size`, `tasks`, `seed`,
            `device`, `spec`, `backbone`, `cache`), and the defaults of every merge.
        token: Hub access token for data sets and the base.
        access: what the user allows when the base is read. Default: the token alone.
        most: images to read of each data set at most, if the recipe gives no number.
        options: options that override those of the recipe.

    Attributes:
        recipe: the options of the run, and the defaults of every merge.
        parents: the models, with the part that they share, and streams on one scale.
        given: the same models, as they were given.
        differences: of the same models to the one that they were fine-tuned from.
        tasks: the name of every task.
        transform: PIL image -> pixels `(channels, height, width)`; `None` if no source has one.
        passes: passes over the images.
        held_out: passes over images that no merge has seen; `None` without a verdict, or if there are too few images.
        places: where models and images were found on this machine.
        memo: results that several merges share: statistics, plans, matches and calibrated weights.

    Raises:
        SourceError, SpecError, DataError, OptionError: as `merge` does.

    >>> merger = Merger(["user/pets", "user/birds"], "user/animals")  # doctest: +SKIP
    >>> full, partial = merger.merge(method="zip"), merger.merge(method="zip", cut="layer2")  # doctest: +SKIP
    """

    def __init__(
        self,
        sources: Sequence[str | Path | nn.Module | Source],
        data: Any = None,
        recipe: Recipe | None = None,
        *,
        base: Base | None = None,
        token: str | None = None,
        access: Access | None = None,
        most: int = USEFUL,
        **options: Any,
    ) -> None:
        recipe = (recipe or Recipe()).changed(**options)
        if recipe.sources or recipe.data:
            raise OptionError("give the models and the images to Merger itself: its recipe holds options only")
        opened = [load_source(source) for source in sources]
        self.recipe = recipe
        self.token = token
        self.tasks = task_names(opened, recipe.tasks)
        self.transform = next((source.transform for source in opened if source.transform), None)
        self.parents = open_parents(opened, recipe.spec, recipe.backbone)
        number = None if recipe.num_images == ALL else recipe.num_images
        chosen = {**self._of_images, "num_images": number, "held_out": recipe.verdict}
        chosen |= {"most": most} if recipe.num_images is None else {}
        images = [] if data is None else open_all(data, len(opened), self.transform, **chosen)
        if len({part.held is None for part in images}) > 1:  # held out are images of all data sets, or of none
            images = open_all(data, len(opened), self.transform, **{**chosen, "held_out": False})
        self.passes = Passes(remembered(images), recipe.batch_size, recipe.device)
        held = [part.held for part in self.passes.images if part.held is not None]
        self.held_out = Passes(held, recipe.batch_size, recipe.device) if held else None
        check_models_run(self.parents.wholes, self.passes)
        self.given = self.parents
        judging = self.held_out or self.passes
        self.differences = Differences(self.given, base or recipe.base, self.passes, judging, access or Access(token))
        self.parents = self.given.equally_loud(self.passes)
        self.places = places_of(self.parents.sources, images)
        self.memo: dict[Any, Any] = {}

    def merge(self, recipe: Recipe | None = None, **options: Any) -> Merged:
        """Merge the models once.

        Args:
            recipe: options of this merge; by default, the merger's own. Options of the run are ignored.
            options: options that override those of the recipe.

        Raises:
            OptionError, DataError, SourceError: as `hf_zipit.merge` does.
        """
        for name in options:
            if name not in PER_MERGE:
                raise OptionError(f"{name} is an option of all merges of a Merger: give it when the Merger is made")
        recipe = (recipe or self.recipe).changed(**options, seed=self.recipe.seed)
        as_given = recipe.compat or recipe.how.rule  # the authors, and differences to a base, take streams as they are
        if as_given and self.parents is not self.given:
            return self._once("as given", self._as_given).merge(recipe)
        if recipe.automatic:
            return self._nearest(recipe)
        if recipe.how.based and recipe.scale == AUTO:
            recipe = recipe.changed(scale=self.differences.scale(recipe, self.merge, self.nearness))
        calibration = CALIBRATIONS[recipe.calibrate]
        if calibration.joint and not self.parents.predicts_jointly:
            raise OptionError(f"{recipe.calibrate} needs classifiers only, each for one class of several; use refit")
        plan = self.plan(recipe)
        check_cut(self.parents.sources, plan.trunk, recipe.calibrate)
        matches = self.match(plan, recipe)
        for name, match in matches.items():
            _log.debug("%s: %d units, of which %s", name, match.width, match.composition())
        base = self.differences.base if recipe.how.based else None
        about = provenance(self.parents, self.recipe, recipe, self.passes, matches, base)
        parents = self.differences.applied(plan, recipe) if recipe.how.rule else self.parents
        merged = assembled(parents, self.tasks, plan, matches, about.to_dict())
        equip(merged, self.parents, {**self.places, "base": [base.folder]} if base and base.folder else self.places)
        merged.to(self.passes.device)
        said = "merged %d spaces by %s up to %s; calibrating: %s"
        _log.info(said, len(matches), recipe.method, plan.cut or "the classifiers", recipe.calibrate)
        state = MergeState(merged, self.parents.sources, plan, matches, self.passes, self.recipe.seed)
        self._calibrate(state, recipe)
        check_finite(merged, f"{recipe.method} with {recipe.calibrate}", self.passes)
        merged.to("cpu").eval()
        return merged

    def choice(self, recipe: Recipe) -> Choice:
        """What suits these models and images where the method or the calibration of a recipe is `auto`."""
        related = self.relation if len(self.parents.sources) > 1 else None
        return choose(recipe, self.parents, self.passes.images, related, self.differences.given is not None)

    @property
    def relation(self) -> Relation:
        """How the models are related."""
        return self._once("relation", partial(relation, self.given.states, self.given.binding))

    def _nearest(self, recipe: Recipe) -> Merged:
        """The merge that suits these models and images; of several, the one that is nearest to the parents."""
        choice = self.choice(recipe)
        for reason in choice.reasons:
            _log.info("%s", reason)
        tried = {mine.method: self.merge(mine) for mine in choice.recipes}
        scores = {method: self.nearness(merged) for method, merged in tried.items()} if len(tried) > 1 else {}
        best = tried[max(tried, key=lambda method: scores.get(method, 0))]
        about = {"reasons": choice.reasons, "tried": {name: round(score, 4) for name, score in scores.items()}}
        best.config.zipit = replace(Provenance.of(best.config), choice=about).to_dict()
        return best

    def nearness(self, merged: Merged) -> float:
        """How near a merge is to its parents: minus the error of its outputs, relative to the variance of theirs.

        It is the mean over the tasks, on the images that are held out, or else on the merger's own.
        """
        found = distance(merged, self.parents.wholes, self.held_out or self.passes).values()
        return same_everywhere(self.passes.accelerator, -sum(task.error for task in found) / len(found))

    def _as_given(self) -> "Merger":
        """A merger of the same models, with streams on the scales that they were given with."""
        out = copy.copy(self)
        out.parents, out.memo = self.given, {}
        return out

    def _calibrate(self, state: MergeState, recipe: Recipe) -> None:
        """Calibrate a merge in place; stages that the previous merge with the same options and cut ran are reused."""
        key = (recipe.how, recipe.options, recipe.cut)
        last, known = self.memo.get("calibrated", (None, {}))
        if last != key:
            known = {}
        self.memo["calibrated"] = (key, known)
        for name in stages_of(recipe.calibrate):
            if name in known:
                state.model.load_state_dict(known[name])
                continue
            CALIBRATIONS[name].run(state)
            if any(other.after == name for other in CALIBRATIONS.values()):
                known[name] = {key: value.clone() for key, value in state.model.state_dict().items()}

    def open_images(self, data: Any, **options: Any) -> list[Images]:
        """Further images for these models, each decoded once; `options` are those of `open_all`."""
        chosen = {**self._of_images, "label_column": self.recipe.label_column, **options}
        return remembered(open_all(data, len(self.parents.sources), self.transform, **chosen))

    @property
    def _of_images(self) -> dict[str, Any]:
        """How images for these models are opened."""
        recipe = self.recipe
        return {
            "channels": self.parents.input_size[0],
            "seed": recipe.seed,
            "token": self.token,
            "skip_bad_images": recipe.skip_bad_images,
        }

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Name and classes of every task, as in the config of a merge."""
        return heads_of(self.parents.sources, self.tasks)

    def plan(self, recipe: Recipe) -> Plan:
        """The plan of a merge: its cut and widths."""
        return self._once(("plan", recipe.how, recipe.options, recipe.cut), lambda: self._plan(recipe))

    def _plan(self, recipe: Recipe) -> Plan:
        """Make the plan of a merge."""
        if recipe.flops_budget is None:
            return sized_plan(self.parents, recipe)
        return budget_plan(self.parents, recipe, self.match, self.statistics)

    def match(self, plan: Plan, recipe: Recipe) -> Matches:
        """The matches of the spaces that a plan merges, by space.

        Raises:
            OptionError: the balance is `auto`.
        """
        if recipe.balance == AUTO:
            raise OptionError("balance is auto; give a number, or use hf_zipit.merge, which chooses one")
        options = recipe.changed(width=1.0, flops_budget=None).options  # the plan already holds the widths
        gathers = self.parents.gathers(plan)  # which some spaces allow no dense match for
        return self._once(
            ("match", options.how, options, plan.depth, gathers, *(tuple(x.items()) for x in (plan.widths, plan.kept))),
            lambda: self._match(plan, options),
        )

    def _match(self, plan: Plan, options: Options) -> Matches:
        """Match the spaces that a plan merges."""
        binding = self.parents.binding
        names = {name for name in self.parents.spaces(plan) if binding.spaces[name].group_axis not in plan.kept}
        dense = dense_spaces(self.parents, plan, names, options.method) if options.how.dense else []
        statistics = self.observations.of_plan(names if options.needs_statistics else (), plan, options.compat)
        given, accelerator = (statistics, self.parents.states, binding), self.passes.accelerator
        soft = DenseMatcher(*given, options, accelerator).matches(dense, self._once("dense", dict))
        matcher = Matcher(*given, aligning(options) if dense else options, plan.widths, accelerator)
        spaces = [binding.spaces[name] for name in binding.spaces if name in names - soft.keys()]
        matches: Matches = {**matcher.matches(spaces, known=self._once("families", dict)), **soft}
        if not plan.kept:
            return matches
        seed = self.recipe.seed if options.heads == "all-random" else None
        return {**matches, **matches_of_heads(plan, self.parents.states, self.observations.heads, matches, seed)}

    def statistics(self, names: Iterable[str], compat: bool = False) -> dict[str, SpaceStatistics]:
        """The statistics of the named spaces; those not known yet take one pass over the images.

        Args:
            names: of the spaces; those without probes are left out.
            compat: compute the statistics as the authors' code does.
        """
        return self.observations.of_spaces(names, compat)

    @property
    def observations(self) -> Observations:
        """What is known of the models' activations."""
        make = partial(Observations, self.parents, self.passes, self.recipe.cache)
        return self._once("observations", make)

    def _once(self, key: Any, make: Callable[[], Made]) -> Made:
        """The result of `make`, computed on the first request and kept in `memo`."""
        if key not in self.memo:
            self.memo[key] = make()
        found: Made = self.memo[key]
        return found

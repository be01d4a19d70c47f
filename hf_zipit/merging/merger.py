"""Models opened once, and any number of merges of them: bind, observe, match, transform, build, calibrate."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_zipit import __version__
from hf_zipit.assembly import multitask as mixed
from hf_zipit.assembly.classifier import assemble
from hf_zipit.assembly.plan import Plan
from hf_zipit.backbones.compatible import check_alike, check_cut, observed_within
from hf_zipit.backbones.share import Shared, are_mixed, share
from hf_zipit.calibration.methods import CALIBRATIONS, Merge, stages_of
from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_all
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.matcher import match_spaces
from hf_zipit.matching.methods import Options
from hf_zipit.merging.provenance import _known, _places, recorded, task_names
from hf_zipit.merging.sizing import Sizing, touched_spaces
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.running import working_copy
from hf_zipit.saving.sidecars import companions
from hf_zipit.sources.load import load
from hf_zipit.sources.source import Source
from hf_zipit.statistics.cache import StatisticsCache
from hf_zipit.statistics.collect import SpaceStatistics, collect
from hf_zipit.transform.match import Match

Merged = ZipItForImageClassification | ZipItModel


_log = logging.getLogger("hf_zipit")


class Merger:
    """Models that are alike, with their spec and images, opened once; every merge of them reads the same statistics.

    Args:
        sources, data, num_images, batch_size, tasks, seed, device, spec, backbone, cache: as for `merge`. Without
            data only merges that read no images can be made.
        token: an access token of the Hub for data sets.

    Raises:
        SourceError, SpecError, DataError, OptionError: as `merge` does.

    >>> merger = Merger(["user/pets", "user/birds"], "user/animals")  # doctest: +SKIP
    >>> full, partial = merger.merge(Options("zip")), merger.merge(Options("zip"), cut="layer2")  # doctest: +SKIP
    """

    def __init__(
        self,
        sources: Sequence[str | Path | nn.Module | Source],
        data: Any = None,
        *,
        num_images: int | Sequence[int] | None = None,
        batch_size: int = 32,
        tasks: Sequence[str] | None = None,
        seed: int = 0,
        device: str | None = None,
        spec: str | Path | None = None,
        backbone: str | None = None,
        cache: bool = True,
        token: str | None = None,
    ) -> None:
        self.sources = [load(source) for source in sources]
        self.tasks, self.seed = task_names(self.sources, tasks), seed
        self.shared: Shared | None = None  # models of several classes, up to where they are alike
        transform = next((source.transform for source in self.sources if source.transform), None)
        if are_mixed(self.sources) or backbone is not None:
            self.shared = share(self.sources, spec, backbone)
            self.sources, self.binding = self.shared.sources, self.shared.binding
        else:
            self.binding = find_spec(self.sources[0], spec)
            check_alike(self.sources, self.binding)
            cut = [source for source in self.sources if source.trunk is not None]
            self.binding = observed_within(self.binding, cut[0]) if cut else self.binding
        chosen: dict[str, Any] = {"num_images": num_images, "seed": seed, "token": token}
        images = [] if data is None else open_all(data, len(self.sources), transform, **chosen)
        self.passes = Passes(images, batch_size, device)
        self.places, self.token = _places(self.sources, images), token
        self.states = [source.model.state_dict() for source in self.sources]
        self.backbone, self.cache = backbone, cache
        self._statistics: dict[bool, dict[str, SpaceStatistics]] = {False: {}, True: {}}  # by `compat`
        self._matches: dict[tuple[Options, int, Any], dict[str, Match]] = {}  # by options, depth, widths
        self._families: dict[Any, dict[str, Match]] = {}  # what activations alone say, for any depth
        self._sizing = Sizing(self.sources, self.binding, self.match, self.statistics)
        self._plans: dict[tuple[Options, str | None], tuple[Plan, dict[str, int]]] = {}
        self._kept: tuple[Any, dict[str, dict[str, Tensor]]] = (None, {})  # the last merge, calibrated

    def merge(self, options: Options, *, cut: str | None = None, calibrate: str = "batchnorm") -> Merged:
        """One merge; see `merge` for the arguments and what is raised."""
        check_calibration(calibrate)
        if self.shared and CALIBRATIONS[calibrate].joint:
            raise OptionError(
                f"{calibrate} is for the joint prediction of classifiers, and not all of these are: refit"
            )
        plan, widths = self.plan(options, cut)
        check_cut(self.sources, plan.trunk, calibrate)
        matches = self.match(plan, options, widths)
        for name, match in matches.items():
            _log.debug("%s: %d units, of which %s", name, match.width, match.composition())
        make = partial(mixed.assemble, self.shared) if self.shared else partial(assemble, self.sources)
        merged: Merged = make(self.tasks, plan, matches, self._provenance(options, calibrate, matches))
        processor = next((source.processor for source in self.sources if source.processor), None)
        merged.image_processor = processor or merged.image_processor
        merged.spec_text, merged.places = self.binding.spec.text, self.places
        merged.companions = companions(merged.config, self.binding.spec.text)
        merged.to(self.passes.device)
        _log.info(
            "merged %d spaces by %s up to %s; calibrating: %s",
            len(matches),
            options.method,
            plan.cut or "the classifiers",
            calibrate,
        )
        self._calibrate(Merge(merged, self.sources, plan, matches, self.passes), calibrate, (options, cut))
        merged.to("cpu").eval()
        return merged

    def _calibrate(self, merge: Merge, calibrate: str, key: tuple[Options, str | None]) -> None:
        """Calibrate a merge in place; what the same merge went through before is not repeated."""
        known = self._kept[1] if self._kept[0] == key else {}
        self._kept = key, known
        for name in stages_of(calibrate):
            if name in known:
                merge.model.load_state_dict(known[name])
                continue
            CALIBRATIONS[name].run(merge)
            if any(other.after == name for other in CALIBRATIONS.values()):
                known[name] = {key: value.clone() for key, value in merge.model.state_dict().items()}

    @property
    def heads(self) -> list[dict[str, Any]]:
        """Name and classes of every task, as in a merge's config."""
        labels = [names for source in self.sources for _, names in source.tasks]
        named = zip(self.tasks, labels, strict=True)
        return [{"task": task, "id2label": dict(enumerate(names))} for task, names in named]

    def plan(self, options: Options, cut: str | None) -> tuple[Plan, dict[str, int]]:
        """Where a merge is cut, and the merged units of the spaces that are not as wide as in one model."""
        if self.shared:
            return mixed.plan_shared(self.shared, options, cut), {}
        if (options, cut) not in self._plans:
            self._plans[options, cut] = self._sizing.plan(options, cut)
        return self._plans[options, cut]

    def match(self, plan: Plan, options: Options, widths: Mapping[str, int] | None = None) -> dict[str, Match]:
        """Match the spaces that the trunk touches; the same match is made once.

        `widths` are merged units by space, where they are not as many as in one model.
        """
        options, names = replace(options, width=1.0, flops_budget=None), self.touched(plan)  # `widths` say it all
        key = (options, plan.depth, tuple((widths or {}).items()))
        if key not in self._matches:
            spaces = [space for name, space in self.binding.spaces.items() if name in names]
            seen = self.statistics(names, options.compat) if options.needs_statistics else {}
            self._matches[key] = match_spaces(
                spaces, seen, self.states, self.binding, options, self.passes.accelerator, widths, self._families
            )
        return self._matches[key]

    def touched(self, plan: Plan) -> set[str]:
        """The names of the spaces that the trunk touches."""
        return touched_spaces(plan, self.states[0])

    def statistics(self, names: Iterable[str], compat: bool = False) -> dict[str, SpaceStatistics]:
        """The statistics of the named spaces: those seen before, and one pass over the images for the others.

        With a cache that pass observes every space, so that it is the only one for any merge of these models.
        """
        known, spaces = self._statistics[compat], self.binding.spaces
        wanted = {name for name in names if spaces[name].probes}
        missing = wanted - set(known)
        if missing and self.cache and self.passes.images:
            stored = StatisticsCache(self.sources, self.binding, self.passes, compat)
            known |= stored.read(spaces[name] for name in sorted(missing))
            if missing - set(known):
                found = self._observe({name for name in spaces if spaces[name].probes} - set(known), compat)
                stored.write(found)
                known |= found
        elif missing:
            known |= self._observe(missing, compat)
        return {name: known[name] for name in known if name in wanted}

    def _observe(self, spaces: set[str], compat: bool) -> dict[str, SpaceStatistics]:
        passes = self.passes
        return collect(
            [working_copy(source.model, passes.device, channels_last=not compat) for source in self.sources],
            self.binding,
            passes("Reading activations"),
            spaces=spaces,
            tasks=len(passes.images),
            names=[source.name for source in self.sources],
            accelerator=passes.accelerator,
            device=passes.device,
            compat=compat,
        )

    def _provenance(self, options: Options, calibrate: str, matches: Mapping[str, Match]) -> dict[str, Any]:
        counts = [len(part) for part in self.passes.images]
        recipe = {**asdict(options), "calibrate": calibrate, "seed": self.seed, "num_images": counts or None}
        recipe |= {"batch_size": self.passes.batch_size, "backbone": self.backbone}
        return {
            "generator": f"hf-zipit {__version__}",
            "sources": [recorded(source) for source in self.sources],
            "recipe": recipe,
            "data": [_known(part) for part in self.passes.images],
            "spaces": [{"name": name, "width": match.width, **match.composition()} for name, match in matches.items()],
        }


def check_calibration(calibrate: str) -> None:
    """Refuse an unknown calibration.

    Raises:
        OptionError: there is none of this name.
    """
    if calibrate not in CALIBRATIONS:
        raise OptionError(f"unknown calibration '{calibrate}'; calibrations: {', '.join(CALIBRATIONS)}")

"""Provenance of a merge (sources, options, images, spaces) and the names of its tasks."""

from collections.abc import Sequence
from typing import Any

from hf_zipit import __version__
from hf_zipit.assembly.parents import Merged, Parents
from hf_zipit.data.batches import Passes
from hf_zipit.data.dataset import Images
from hf_zipit.data.rows import hub_data
from hf_zipit.errors import OptionError
from hf_zipit.recipe import PinnedSource, Recipe
from hf_zipit.saving.license import license_of
from hf_zipit.saving.provenance import Provenance
from hf_zipit.saving.sidecars import sidecar_files
from hf_zipit.sources.source import DETECTION, Source
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match


def provenance(
    parents: Parents, run: Recipe, recipe: Recipe, passes: Passes, matches: Matches, base: Source | None = None
) -> Provenance:
    """The provenance of a merge: enough to reproduce it and to see what went into it.

    Args:
        parents: the models.
        run: options of the run, such as the seed.
        recipe: options of the merge.
        passes: passes over the images.
        matches: by space.
        base: the model that the others were fine-tuned from, if the method needs it.
    """
    counts = [part.asked or len(part) for part in passes.images]
    options = {**recipe.options.model_dump(), "calibrate": recipe.calibrate}
    options |= {
        "seed": run.seed,
        "num_images": counts or None,
        "batch_size": passes.batch_size,
        "backbone": run.backbone,
    }
    options |= {"skip_bad_images": run.skip_bad_images} if run.skip_bad_images else {}
    if base is not None:
        known = PinnedSource.model_fields
        options["base"] = {name: value for name, value in base.origin.items() if value and name in known}
    options |= {} if run.verdict else {"verdict": False}  # which holds out no images
    return Provenance(
        generator=f"hf-zipit {__version__}",
        sources=[recorded(source) for source in parents.sources],
        recipe=options,
        data=[_recorded_data(part) for part in passes.images],
        spaces=[_recorded_space(name, match) for name, match in matches.items()],
    )


def _recorded_space(name: str, match: Match | DenseMatch | HeadMatch) -> dict[str, Any]:
    """The record of a merged space."""
    record = {"name": name, "width": match.width, **match.composition()}
    if isinstance(match, HeadMatch):
        record |= {"heads": match.merged_heads, "kept": round(match.score, 4)}
    if isinstance(match, DenseMatch):
        record |= {"dense": True}
    return record


def recorded(source: Source) -> dict[str, Any]:
    """The record of a model: its origin, and the license stated in its card."""
    return {**source.origin, **license_of(source.folder)}


def _recorded_data(images: Images) -> dict[str, Any]:
    """The record of a data set: its name, its size, and its Hub id or the name of its folder."""
    recorded = {"name": images.name, "num_images": len(images)}
    if images.ref is None:
        return recorded
    if hub_data(images.ref) is not None:
        return {**recorded, "ref": images.ref}
    return {**recorded, "folder": images.name}


def places_of(sources: Sequence[Source], images: Sequence[Images]) -> dict[str, Any]:
    """Paths or ids of models and images on this machine; `data` is `None` if any of the images have none."""
    refs = [part.ref for part in images]
    return {"sources": [source.folder for source in sources], "data": refs if refs and all(refs) else None}


def equip(merged: Merged, parents: Parents, places: dict[str, Any]) -> None:
    """Give a merge what is saved beside its weights: processor, spec, locations, and texts.

    Args:
        merged: the merge, changed in place.
        parents: the models.
        places: where models and images were found on this machine.
    """
    held = [source for source in parents.sources if source.processor]
    held.sort(key=lambda source: source.kind != DETECTION)  # which alone makes boxes of outputs
    processor = held[0].processor if held else None
    merged.image_processor = processor or merged.image_processor
    merged.spec_text = parents.binding.spec.text
    merged.locations = places
    merged.sidecars = sidecar_files(merged.config, merged.spec_text)


def task_names(sources: Sequence[Source], tasks: Sequence[str] | None) -> list[str]:
    """The names of the tasks: those given, or else the models' names, with numbers to tell equal ones apart.

    Args:
        sources: the opened models.
        tasks: one name for each task, or `None`.

    Raises:
        OptionError: there is no model, or the names are not different, one for each task.
    """
    check_count(len(sources), shrinks=True)
    names = [name for source in sources for name, _ in source.tasks]
    if tasks is None:
        return [n if names.count(n) == 1 else f"{n}-{names[: i + 1].count(n)}" for i, n in enumerate(names)]
    if len(tasks) != len(names) or len(set(tasks)) != len(tasks):
        raise OptionError(f"tasks {list(tasks)}: {len(names)} different names are needed, one for each task")
    return list(tasks)


def check_count(models: int, shrinks: bool = False) -> None:
    """Check that there are enough models for a merge.

    Args:
        models: number of models.
        shrinks: whether the result is to be smaller than one model; one is enough then.

    Raises:
        OptionError: there are fewer than two, or none.
    """
    if models < (1 if shrinks else 2):
        raise OptionError(
            f"{models} model given: a merge needs two or more. To make one model smaller, use hf-zipit fold "
            "(hf_zipit.fold), with a width or a flops_budget below 1"
        )

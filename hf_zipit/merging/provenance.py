"""Models opened once, and any number of merges of them: bind, observe, match, transform, build, calibrate."""

from collections.abc import Sequence
from typing import Any

from hf_zipit.data.images import Images
from hf_zipit.data.rows import hub_data
from hf_zipit.errors import OptionError
from hf_zipit.saving.license import licence_of
from hf_zipit.sources.source import Source


def recorded(source: Source) -> dict[str, Any]:
    """What a merge tells of a model: its origin, and what its card says about its licence."""
    return {**source.origin, **licence_of(source.folder)}


def _known(images: Images) -> dict[str, Any]:
    """What a merge tells of a data set: its name, and if it can be found again by that of a place on the Hub."""
    on_hub = images.ref is not None and hub_data(images.ref) is not None
    place = {"ref": images.ref} if on_hub else {"folder": images.name} if images.ref else {}
    return {"name": images.name, "num_images": len(images), **place}


def _places(sources: Sequence[Source], images: Sequence[Images]) -> dict[str, Any]:
    """Where models and images were found; no place for the images if some had none."""
    refs = [part.ref for part in images]
    return {"sources": [source.folder for source in sources], "data": refs if refs and all(refs) else None}


def task_names(sources: Sequence[Source], tasks: Sequence[str] | None) -> list[str]:
    """The tasks' names: those given, else the models', told apart where they are the same.

    Raises:
        OptionError: fewer than two models, or not one name for each task.
    """
    if len(sources) < 2:
        raise OptionError(f"{len(sources)} model given: a merge needs two or more")
    names = [name for source in sources for name, _ in source.tasks]
    if tasks is None:
        return [n if names.count(n) == 1 else f"{n}-{names[: i + 1].count(n)}" for i, n in enumerate(names)]
    if len(tasks) != len(names) or len(set(tasks)) != len(tasks):
        raise OptionError(f"tasks {list(tasks)}: {len(names)} different names are needed, one for each task")
    return list(tasks)

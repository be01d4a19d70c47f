"""Writing a merged model as a Hub-format folder: all of it, or nothing."""

import logging
import os
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.recipe import PinnedSource, read_recipe
from hf_zipit.saving.atomic import whole_folder
from hf_zipit.saving.license import common_licence
from hf_zipit.saving.load import check_merged
from hf_zipit.saving.plain import check_format, write_plain
from hf_zipit.saving.sidecars import RECIPE, SPEC, companions
from hf_zipit.sources.libraries import processor_of

_log = logging.getLogger("hf_zipit")


def check_output(folder: str | Path, overwrite: bool = False) -> Path:
    """Refuse an output folder that exists, before any work is done.

    Only an empty folder or an earlier merge is ever overwritten.

    Raises:
        OptionError: the folder exists and may not be replaced.
    """
    folder = Path(folder)
    above = next(p for p in (folder.absolute().parent, *folder.absolute().parents) if p.exists())
    if not above.is_dir():
        raise OptionError(f"{folder} cannot be made: {above} is not a folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not overwrite:
        raise OptionError(f"{folder} exists already: choose another folder, or --overwrite it (overwrite=True)")
    if not _is_ours(folder):
        raise OptionError(f"{folder} is not an earlier merge: it is not overwritten, remove it yourself")
    return folder


def _is_ours(folder: Path) -> bool:
    """A merged model, or an ordinary checkpoint with the files that `save` puts beside it."""
    try:
        check_merged(folder)
    except (SourceError, OSError):
        return all((folder / name).is_file() for name in (RECIPE, SPEC, "config.json", "README.md"))
    return True


def check_saveable(
    config: ZipItConfig, library: str = "zipit", task: str | None = None, license: str | None = None
) -> dict[str, str]:
    """Refuse what could not be saved, or not be loaded again, from the config alone; returns the licence.

    Args:
        config: of the merge, or what is known of it before the work: backbone, cut, heads and sources.
        library, task, license: as for `save`.

    Raises:
        OptionError, SourceError, OutputError: as `save` does.
    """
    for part in (config.backbone or {}, *(head.get("model", {}) for head in config.heads or [])):
        if part.get("remote"):
            raise OutputError(
                "the merge could not be saved: the models' architecture is code that came with them, and without it "
                "nobody could load the merge; hf_zipit.merge can make it and use it in one process"
            )
        if part.get("library") == "memory":
            raise OutputError(
                f"a {part['architecture']} given in memory cannot be rebuilt: its merges run, but cannot be saved"
            )
    check_format(config, library, task)
    return common_licence((config.zipit or {}).get("sources", []), license)


def save(
    model: ZipItPreTrainedModel,
    folder: str | Path,
    *,
    overwrite: bool = False,
    library: str = "zipit",
    task: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a merged model: config, weights, spec, recipe, card, and what preprocesses images.

    The folder appears at once when everything is written, whenever the process ends.

    Args:
        model: the merged model.
        folder: where to; must not exist unless `overwrite`.
        overwrite: replace an earlier merge.
        library: `zipit` writes all heads and the code files that run them. `timm` and `transformers` write an
            ordinary checkpoint of the library that the sources came from, which loads without hf-zipit; it needs a
            full merge at the parents' width (see `plain_model`).
        task: for an ordinary checkpoint, the only task to keep; else one classifier has the classes of all.
        license: of the merged model; else the one that all its parents state.

    Raises:
        OptionError: the folder exists, or an unknown format or task.
        SourceError: the parents' licences differ.
        OutputError: the disk is full, the folder cannot be written for another reason, or it is a merge that could not
            be loaded again, or has no ordinary form.

    >>> save(merged, "merged")  # doctest: +SKIP
    >>> save(merged, "plain", library="timm")  # doctest: +SKIP
    """
    folder, config = check_output(folder, overwrite), model.config
    licence = check_saveable(config, library, task, license)
    if library == "zipit":
        try:
            model.check_described()
        except ValueError as error:
            raise OutputError(str(error)) from None
    parents = (config.zipit or {}).get("sources", [])
    about: dict[str, Any] = {"library": library, "task": task, "licence": licence}
    spec_text, found = model.spec_text, model.places
    if found is None and library != "zipit" and model.origin:
        spec_text, found = _beside(Path(model.origin[0]))
    with whole_folder(folder) as partial:
        places = _relative(found or {}, folder)
        for source, path in zip(parents, places.get("sources", []), strict=False):
            source.update({} if path is None or source.get("id") else {"path": path})
        if library == "zipit":
            model.save_pretrained(partial)
        else:
            write_plain(model, partial, library, task, processor_of(model))
        for name, text in companions(config, spec_text, places.get("data"), **about).items():
            if found is not None or license is not None or not (partial / name).exists():
                (partial / name).write_text(text, encoding="utf-8")
    return folder


def _beside(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The spec that a saved merge keeps beside its weights, and the places of its sources and data."""
    spec, file = folder / SPEC, folder / RECIPE
    text = spec.read_text(encoding="utf-8") if spec.is_file() else None
    if not file.is_file():
        return text, None
    recipe = read_recipe(file)
    paths = [source.path if isinstance(source, PinnedSource) else source for source in recipe.sources]
    return text, {"sources": paths, "data": recipe.data}


def _relative(places: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Places relative to the folder that is written: no path of this machine gets into it."""

    def shown(place: str | Path | None) -> str | None:
        path = Path(os.path.expanduser(place)) if place is not None else None
        bare = Path(str(place).rpartition(":")[0])
        if path is None or not (path.exists() or bare.exists()):
            return None if place is None else str(place)
        return os.path.relpath(path.absolute(), folder.absolute())

    return {kind: found and [shown(place) for place in found] for kind, found in places.items()}

"""Save a merged model as a Hub-format folder or as an ordinary checkpoint, with the checks that come before."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.files.folders import is_empty, recover, write_atomically
from hf_zipit.files.place import check_place
from hf_zipit.matching.registry import absent_methods
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.recipe import PinnedSource, read_recipe
from hf_zipit.saving.license import common_license
from hf_zipit.saving.load import check_merged
from hf_zipit.saving.picture import PICTURE, draw_structure
from hf_zipit.saving.plain import check_format, write_plain
from hf_zipit.saving.provenance import Provenance
from hf_zipit.saving.sidecars import RECIPE, SPEC, sidecar_files
from hf_zipit.saving.verify import check_written
from hf_zipit.sources.in_memory import MEMORY
from hf_zipit.sources.preprocessing import processor_of


def check_output(folder: str | Path, overwrite: bool = False) -> Path:
    """Check that a folder may be written, before any work is done.

    Only an empty folder or, with `overwrite`, an earlier merge is ever replaced. That it can be written is tried, and
    what a killed process left of an earlier write is put in order.

    Raises:
        OptionError: the folder exists and may not be replaced, or cannot be created.
        OutputError: there is no permission, the disk is full, or a link leads nowhere.
    """
    folder = Path(folder)
    check_place(folder)
    place = Path(os.path.realpath(folder))
    with suppress(OSError):
        recover(place)
    if place.exists() and not (place.is_dir() and is_empty(place)):
        if not overwrite:
            raise OptionError(
                f"{folder} exists already: choose another folder, or replace it (overwrite=True, or --overwrite)"
            )
        if not _is_earlier_merge(place):
            raise OptionError(f"{folder} is not an earlier merge, so it is not overwritten: remove it yourself")
    return folder


def _is_earlier_merge(folder: Path) -> bool:
    """Whether a folder holds a merged model, or an ordinary checkpoint that `save` wrote."""
    try:
        check_merged(folder)
    except (SourceError, OSError):
        return all((folder / name).is_file() for name in (RECIPE, SPEC, "config.json", "README.md"))
    return True


def check_saveable(
    config: ZipItConfig, library: str = "zipit", task: str | None = None, license: str | None = None
) -> dict[str, str]:
    """Check from the config alone that a merge can be saved and loaded again.

    Args:
        config: config of the merge, or what is known of it in advance: backbone, cut, heads and sources.
        library: as for `save`.
        task: as for `save`.
        license: as for `save`.

    Returns:
        The license metadata of the merge.

    Raises:
        OptionError: the format or task is unknown, or does not fit the models.
        SourceError: the parents state different licenses, and none is given.
        OutputError: the merge could not be loaded again, or the library has no such model.
    """
    for part in (config.backbone or {}, *(head.get("model", {}) for head in config.heads or [])):
        if part.get("remote"):
            raise OutputError(
                "the merge cannot be saved: the parents' architecture is remote code, without which nobody could load "
                "the merge. Make it with hf_zipit.merge and use it in the same process"
            )
        if part.get("library") == MEMORY:
            raise OutputError(
                f"{part['architecture']} was passed in memory and cannot be rebuilt: a merge of it runs, but cannot be "
                "saved"
            )
    check_format(config, library, task)
    return common_license(Provenance.of(config).sources, license)


def save(
    model: ZipItPreTrainedModel,
    folder: str | Path,
    *,
    overwrite: bool = False,
    library: str = "zipit",
    task: str | None = None,
    license: str | None = None,
) -> Path:
    """Write a merged model: config, weights, preprocessing, spec, recipe and card.

    The write is atomic: the folder appears when it is complete, and not at all if the process is killed before. Into a
    mount point or the current folder files are written one by one, `config.json` last, so that an incomplete merge is
    never taken for a model.

    Args:
        model: the merged model.
        folder: the folder to write; it must be new or empty unless `overwrite`. A symbolic link stays a link.
        overwrite: replace an earlier merge.
        library: `zipit` writes all heads and the code files that run them. `timm` and `transformers` write an
            ordinary checkpoint of the parents' library, which loads without hf-zipit; this needs a full merge at the
            parents' width (see `plain_model`).
        task: for an ordinary checkpoint, the only task to keep; by default one classifier covers the classes of all.
        license: license of the merged model; by default the one that all parents state.

    Returns:
        The folder.

    Raises:
        OptionError: the folder exists, or the format or task is unknown.
        SourceError: the parents state different licenses, and none is given.
        OutputError: the disk is full, the folder cannot be written, a weight is not finite, the merge could not be
            loaded again, or it has no ordinary form.

    >>> save(merged, "merged")  # doctest: +SKIP
    >>> save(merged, "plain", library="timm")  # doctest: +SKIP
    """
    folder = check_output(folder, overwrite)
    license_metadata = check_saveable(model.config, library, task, license)
    try:
        model.check_finite()
        if library == "zipit":
            model.check_described()
    except ValueError as error:
        raise OutputError(f"{folder} is not written: {error}") from None
    spec_text, locations = model.spec_text, model.locations
    if locations is None and library != "zipit" and model.origin:
        spec_text, locations = _saved_beside(Path(model.origin[0]))
    with write_atomically(folder) as partial:
        relative = _relative_to(folder, locations or {})
        _record_paths(model.config, relative.get("sources") or [])
        if library == "zipit":
            model.save_pretrained(partial)
        else:
            write_plain(model, partial, library, task, processor_of(model))
        options: dict[str, Any] = {"library": library, "task": task, "license": license_metadata}
        (base,) = relative.get("base") or [None]
        for name, text in sidecar_files(model.config, spec_text, relative.get("data"), base, **options).items():
            # a reloaded merge keeps the texts it came with, unless its license changes
            if locations is not None or license is not None or not (partial / name).exists():
                (partial / name).write_text(text, encoding="utf-8")
        if library == "zipit":
            draw_structure(model, partial / PICTURE)
            check_written(model, partial)
        check_output(folder, overwrite)  # another process may have written it in the meantime
    return folder


@absent_methods()
def _saved_beside(folder: Path) -> tuple[str | None, dict[str, Any] | None]:
    """The spec text and the locations of sources and data that a saved merge keeps beside its weights."""
    spec = folder / SPEC
    text = spec.read_text(encoding="utf-8") if spec.is_file() else None
    if not (folder / RECIPE).is_file():
        return text, None
    recipe = read_recipe(folder / RECIPE)
    paths = [source.path if isinstance(source, PinnedSource) else source for source in recipe.sources]
    base = recipe.base.path if isinstance(recipe.base, PinnedSource) else recipe.base
    return text, {"sources": paths, "data": recipe.data, "base": base and [base]}


def _relative_to(folder: Path, locations: dict[str, Any]) -> dict[str, Any]:
    """The locations with local paths relative to `folder`; Hub ids are unchanged."""

    def shown(location: str | Path | None) -> str | None:
        if location is None:
            return None
        path = Path(os.path.expanduser(location))
        without_split, colon, _ = str(location).rpartition(":")
        if not (path.exists() or (colon and Path(without_split).exists())):
            return str(location)  # a Hub id
        parent = os.path.realpath(path.parent)  # `..` leads out of the folder that a link leads to
        return os.path.relpath(os.path.join(parent, path.name), os.path.realpath(folder))

    return {kind: found and [shown(location) for location in found] for kind, found in locations.items()}


def _record_paths(config: ZipItConfig, paths: list[str | None]) -> None:
    """Record the paths of local parents in the config, in place; parents on the Hub are known by their id."""
    for source, path in zip(Provenance.of(config).sources, paths, strict=False):
        if path is not None and not source.get("id"):
            source["path"] = path

"""Writing a merged model as a Hub-format folder: all of it, or nothing."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_zipit import sources as source_models
from hf_zipit.card import card
from hf_zipit.configuration_zipit import ZipItConfig
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.libraries import Source
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.recipe import PinnedSource, Recipe, make_recipe

_log = logging.getLogger("hf_zipit")
SPEC, RECIPE = "zipit_spec.yaml", "zipit_config.yml"


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
        raise OptionError(f"{folder} exists already: choose another folder, or pass --overwrite")
    try:
        _check_merged(folder)
    except (SourceError, OSError):
        raise OptionError(f"{folder} is not an earlier merge: it is not overwritten, remove it yourself") from None
    return folder


def save(
    model: ZipItForImageClassification,
    folder: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a merged model: config, weights, code files, spec, recipe and card.

    The folder appears at once when everything is written; an interruption leaves nothing behind but a hidden
    temporary folder.

    Args:
        model: the merged model.
        folder: where to; must not exist unless `overwrite`.
        overwrite: replace an earlier merge.

    Raises:
        OptionError: the folder exists.

    >>> save(merged, "merged")  # doctest: +SKIP
    """
    folder = check_output(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        places = _relative(model.places or {}, folder)
        for source, path in zip((model.config.zipit or {}).get("sources", []), places.get("sources", []), strict=False):
            source.update({} if path is None or source.get("id") else {"path": path})
        model.save_pretrained(partial)
        if model.image_processor is not None:
            model.image_processor.save_pretrained(partial)
        if model.spec_text:
            (partial / SPEC).write_text(model.spec_text, encoding="utf-8")
        (partial / RECIPE).write_text(_recipe_text(recipe(model.config, places.get("data"))), encoding="utf-8")
        (partial / "README.md").write_text(card(model.config), encoding="utf-8")
        partial.chmod(0o755)
        for file in partial.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def recipe(config: ZipItConfig, data: list[str] | None = None) -> Recipe:
    """The recipe that makes these weights again.

    Args:
        config: of the merged model.
        data: what the images were read from, where they have a place.
    """
    about = config.zipit or {}
    known = PinnedSource.model_fields
    sources = [{k: v for k, v in source.items() if k in known} for source in about.get("sources", [])]
    return make_recipe(
        sources=sources,
        data=data,
        tasks=config.tasks,
        cut=config.cut,
        spec=SPEC,
        generator=about.get("generator"),
        **about.get("recipe", {}),
    )


def _recipe_text(recipe: Recipe) -> str:
    text = yaml.safe_dump(recipe.recorded(), sort_keys=False, allow_unicode=True)
    return f"# hf-zipit merge {RECIPE} -o OUT makes these weights again; paths are relative to this file\n{text}"


def _relative(places: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Places relative to the folder that is written: no path of this machine gets into it."""

    def shown(place: str | Path | None) -> str | None:
        path = Path(os.path.expanduser(place)) if place is not None else None
        bare = Path(str(place).rpartition(":")[0])
        if path is None or not (path.exists() or bare.exists()):
            return None if place is None else str(place)
        return os.path.relpath(path.absolute(), folder.absolute())

    return {kind: found and [shown(place) for place in found] for kind, found in places.items()}


def load(folder: str | Path) -> ZipItForImageClassification:
    """Load a merged model from a folder or the Hub.

    Raises:
        SourceError: it is no merged model, or its weights are incomplete or damaged.
    """
    if Path(folder).is_dir():
        _check_merged(Path(folder))
    try:
        model, info = ZipItForImageClassification.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # OSError, SafetensorError, ValueError and others, depending on what is wrong
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(f"cannot load the merged model {folder}: {first}") from error
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"{folder} does not hold a whole merged model: {', '.join(wrong[:3])}")
    out: ZipItForImageClassification = model.eval()
    return out


def _check_merged(folder: Path) -> None:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError:
        raise SourceError(f"{folder} is no merged model: it has no config.json") from None
    except (ValueError, AttributeError) as error:
        raise SourceError(f"cannot load the merged model {folder}: its config.json is damaged: {error}") from None
    if kind != ZipItConfig.model_type:
        raise SourceError(f"{folder} is no merged model: its model_type is {kind}")


def load_parents(config: ZipItConfig, folder: str | Path, given: Sequence[str] | None = None) -> list[Source]:
    """The models a merge was made of: those given, else those it records; none, with a warning, if one is gone.

    Raises:
        SourceError: a model cannot be loaded, or is not the one that was merged.
    """
    recorded = (config.zipit or {}).get("sources", [])
    places = list(given) if given else [_place(source, Path(folder)) for source in recorded]
    if any(place is None for place in places):
        gone = (config.tasks[i] for i, place in enumerate(places) if place is None)
        _log.warning("the parents of %s are not where they were: name all with --parent to compare", ", ".join(gone))
        return []
    if len(places) != len(config.tasks):
        raise SourceError(f"{len(places)} parents given: name one for each of the tasks {', '.join(config.tasks)}")
    parents = [source_models.load(str(place)) for place in places]
    for task, parent, source in zip(config.tasks, parents, recorded, strict=True):
        known, found = source.get("sha256"), parent.origin.get("sha256")
        if known and found != known:
            raise SourceError(
                f"{parent.name} is not the model that was merged as task '{task}': its weights have another sha256. "
                "Name the parents in task order"
            )
    return parents


def _place(source: dict[str, Any], folder: Path) -> str | None:
    if source.get("id"):
        return f"{source['id']}@{source['revision']}"
    path = folder / source["path"] if source.get("path") else None
    return str(path) if path and path.is_dir() else None

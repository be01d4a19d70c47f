"""Load a merged model, and the models that it was made of."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import HUB_ID, fetch
from hf_zipit.sources.load import load as load_source
from hf_zipit.sources.merges import open_merged
from hf_zipit.sources.source import Source

Merged = ZipItForImageClassification | ZipItModel
MERGES: dict[str, type[Merged]] = {
    cls.config_class.model_type: cls for cls in (ZipItForImageClassification, ZipItModel)
}
_log = logging.getLogger("hf_zipit")


def load(model: str | Path, access: Access = NOTHING) -> Merged:
    """Load a merged model from a folder or the Hub (`user/name`, `user/name@revision`).

    Raises:
        SourceError: it is no merged model, its weights are incomplete or damaged, or the Hub does not give it.
    """
    folder = _folder(model, access)
    return open_merged(folder, MERGES[check_merged(folder)])


def is_merge(model: str | Path, access: Access = NOTHING) -> bool:
    """Whether a folder or a repository of the Hub (`user/name`, `user/name@revision`) holds a merged model.

    Raises:
        SourceError: the Hub does not give it.
    """
    folder = _folder(model, access)
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") in MERGES


def _folder(model: str | Path, access: Access) -> Path:
    local = Path(model).is_dir() or not HUB_ID.fullmatch(str(model))
    return Path(model) if local else fetch(str(model), access).folder


def check_merged(folder: Path) -> str:
    """Make sure that a folder holds a merged model, by its config; returns its `model_type`.

    Raises:
        SourceError: it does not.
    """
    kind = str(read_json(folder / "config.json").get("model_type"))
    if kind not in MERGES:
        raise SourceError(
            f"{folder} is no merged model, but an ordinary one: name a folder that `hf-zipit merge` wrote, beside "
            "which its parents are evaluated as well"
        )
    return kind


def load_parents(
    config: ZipItConfig, folder: str | Path, given: Sequence[str] | None = None, access: Access = NOTHING
) -> list[Source]:
    """The models a merge was made of: those given, else those it records; none, with a warning, if one is gone.

    Raises:
        SourceError: a model cannot be loaded, or is not the one that was merged.
        OptionError: not one parent for each that was merged.
    """
    recorded = (config.zipit or {}).get("sources", [])
    names = [", ".join(h["task"] for h in config.heads or [] if h["source"] == i) for i in range(len(recorded))]
    places = list(given) if given else [_place(source, Path(folder)) for source in recorded]
    if any(place is None for place in places):
        gone = (names[i] for i, place in enumerate(places) if place is None)
        _log.warning("the parents of %s are not where they were: name all with --parent to compare", ", ".join(gone))
        return []
    if len(places) != len(recorded):
        raise OptionError(f"{len(places)} parents given: name one for each of {'; '.join(names)}")
    parents = [load_source(str(place), access=access) for place in places]
    for task, parent, source in zip(names, parents, recorded, strict=True):
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

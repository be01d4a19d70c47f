"""Load a saved merge from a folder or the Hub, and the parents it was made of."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import HUB_ID, fetch
from hf_zipit.sources.load import load_source
from hf_zipit.sources.merges import open_merged
from hf_zipit.sources.source import Source

Merged = ZipItForImageClassification | ZipItModel
MERGES: dict[str, type[Merged]] = {  # by the `model_type` in config.json
    cls.config_class.model_type: cls for cls in (ZipItForImageClassification, ZipItModel)
}
_log = logging.getLogger("hf_zipit")


def load_merged(model: str | Path, access: Access = NOTHING) -> Merged:
    """Load a merged model from a folder or the Hub.

    Args:
        model: a folder, or a Hub id: `user/name` or `user/name@revision`.
        access: what the user allows: an access token, code and pickle files.

    Raises:
        SourceError: it is not a merged model, its weights are incomplete or damaged, or it cannot be downloaded.

    >>> load_merged("user/merged").config.tasks  # doctest: +SKIP
    ['pets', 'birds']
    """
    folder = _local_folder(model, access)
    return open_merged(folder, MERGES[check_merged(folder)])


def is_merge(model: str | Path, access: Access = NOTHING) -> bool:
    """Whether a folder or a Hub repository (`user/name`, `user/name@revision`) holds a merged model.

    Raises:
        SourceError: the repository cannot be downloaded.
    """
    folder = _local_folder(model, access)
    return (folder / "config.json").is_file() and str(read_json(folder / "config.json").get("model_type")) in MERGES


def _local_folder(model: str | Path, access: Access) -> Path:
    """The folder itself, or the one that a Hub repository is downloaded to."""
    local = Path(model).is_dir() or not HUB_ID.fullmatch(str(model))
    return Path(model) if local else fetch(str(model), access).folder


def check_merged(folder: Path) -> str:
    """Check by its config that a folder holds a merged model, and return the `model_type`.

    Raises:
        SourceError: it is another model, or has no readable config.
    """
    kind = str(read_json(folder / "config.json").get("model_type"))
    if kind not in MERGES:
        raise SourceError(f"{folder} is not a merged model; pass a folder written by `hf-zipit merge`")
    return kind


def load_parents(
    config: ZipItConfig, folder: str | Path, given: Sequence[str] | None = None, access: Access = NOTHING
) -> list[Source]:
    """Load the parents of a merge.

    Args:
        config: config of the merge.
        folder: folder of the merge; recorded paths of local parents are relative to it.
        given: folders or Hub ids of all parents in task order; by default those that the config records.
        access: what the user allows when models are loaded.

    Returns:
        One source per parent; none, with a warning, if a recorded parent has moved.

    Raises:
        SourceError: a model cannot be loaded, or differs from the one that was merged.
        OptionError: the number of given parents is wrong.
    """
    recorded = Provenance.of(config).sources
    heads = config.heads or []
    names = [", ".join(head["task"] for head in heads if head["source"] == i) for i in range(len(recorded))]
    refs = list(given) if given else [_ref(source, Path(folder)) for source in recorded]
    moved = [name for name, ref in zip(names, refs, strict=False) if ref is None]
    if moved:
        _log.warning(
            "the parents of %s are no longer at their recorded paths: name all parents to compare with (parents=..., "
            "or --parent)",
            ", ".join(moved),
        )
        return []
    if len(refs) != len(recorded):
        raise OptionError(f"{len(refs)} parents given: pass {len(recorded)}, for the tasks {'; '.join(names)}")
    parents = [load_source(str(ref), access=access) for ref in refs]
    for task, parent, source in zip(names, parents, recorded, strict=True):
        known = source.get("sha256")
        found = parent.origin.get("sha256")
        if known and found != known:
            raise SourceError(
                f"{parent.name} is not the model that was merged as task '{task}': the sha256 of its weights differs. "
                "Pass the parents in task order"
            )
    return parents


def _ref(source: Mapping[str, Any], folder: Path) -> str | None:
    """Hub id or path of a recorded parent; `None` if it is not found."""
    if source.get("id"):
        return f"{source['id']}@{source['revision']}"
    path = folder / source["path"] if source.get("path") else None
    return str(path) if path and path.is_dir() else None

"""Models of the Hub as local folders: only the files that are needed, pinned to one commit, and cached."""

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hf_zipit import __version__
from hf_zipit.errors import SourceError
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.checkpoint import INDEX, PICKLES, WEIGHTS, only_pickled, read_json, shards
from hf_zipit.sources.faults import FAULTS, explain

_log = logging.getLogger("hf_zipit")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SMALL = ["config.json", ADAPTER, INDEX, "preprocessor_config.json", "processor_config.json", "README.md", "zipit_*"]


@dataclass(frozen=True)
class Download:
    """A snapshot of a repository.

    Attributes:
        folder: where its files are.
        name: the repository's current name, `user/name`.
        revision: the commit.
        adapter: whether it holds an adapter, and no model.
    """

    folder: Path
    name: str
    revision: str
    adapter: bool = False


def is_adapter(folder: Path, files: Collection[str] | None = None) -> bool:
    """Whether a folder holds an adapter of PEFT, and no model.

    Args:
        folder: the folder, or the part of a repository that is downloaded.
        files: all files of the repository; `None` if they are those in the folder.
    """
    models = (WEIGHTS, INDEX)
    held = any(name in files if files is not None else (folder / name).is_file() for name in models)
    return (folder / ADAPTER).is_file() and not held


def fetch(ref: str, access: Access = NOTHING) -> Download:
    """Download the needed files of `user/name` or `user/name@revision`: the config, then the weights if it is valid.

    If the Hub cannot be reached, or `HF_HUB_OFFLINE` is set, an earlier download is used. A renamed repository is
    found by its old name, with a warning.

    Raises:
        SourceError: the repository is missing, private or gated, or has no such revision or no weights; the connection
            failed; or the disk is full. Each has its own message.

    >>> fetch("user/birds@main").folder  # doctest: +SKIP
    """
    name, _, asked = ref.partition("@")
    api = client(access)
    try:
        revision = api.resolve_revision(name, revision=asked or None)
        current, files = _listing(api, name, revision.resolved)
        small = [*_SMALL, *(["*.py"] if access.trust_remote_code else [])]
        folder = Path(api.snapshot_download(name, revision=revision, allow_patterns=small))
        read_json(folder / (ADAPTER if is_adapter(folder, files) else "config.json"))
        weights = _weights(folder, files, access, name)
        api.snapshot_download(name, revision=revision, allow_patterns=[*small, *weights])
    except FAULTS as error:
        raise SourceError(_fault(error, name, asked or None, access)) from error
    return Download(folder, current, revision.resolved, is_adapter(folder, files))


def look(ref: str, access: Access = NOTHING) -> tuple[Download, int]:
    """Download the small files of `user/name` or `user/name@revision`, and count the bytes of weights still missing.

    Raises:
        SourceError: as `fetch` does.
    """
    name, _, asked = ref.partition("@")
    api = client(access)
    try:
        revision = api.resolve_revision(name, revision=asked or None)
        current, files = _listing(api, name, revision.resolved)
        folder = Path(api.snapshot_download(name, revision=revision, allow_patterns=_SMALL))
        weights = _weights(folder, files, access, name)
        found = api.snapshot_download(name, revision=revision, allow_patterns=weights, dry_run=True)
    except FAULTS as error:
        raise SourceError(_fault(error, name, asked or None, access)) from error
    missing = sum(file.file_size or 0 for file in found if file.will_download)
    return Download(folder, current, revision.resolved, is_adapter(folder, files)), missing


def look_at_data(name: str, revision: str | None, access: Access = NOTHING) -> int | None:
    """The bytes of a data set that are not cached, over all its splits; `None` if the Hub does not state them.

    Args:
        name: `user/name` of the data set.
        revision: branch, tag or commit; `None` for the main branch.
        access: what the user allows.

    Raises:
        SourceError: it does not exist, or this user has no access.
    """
    try:
        info = client(access).dataset_info(name, revision=revision, files_metadata=True)
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return None
    except FAULTS as error:
        raise SourceError(explain(error, name, revision, access.token)) from error
    files = info.siblings or []
    if any(file.size is None for file in files):
        return None
    here = {"repo_type": "dataset", "revision": info.sha}
    missing = (f for f in files if not isinstance(try_to_load_from_cache(name, f.rfilename, **here), str))
    return sum(file.size or 0 for file in missing)


def no_model(ref: str | Path) -> str:
    """The message for a model that is neither a folder nor a Hub id; with a slash it can only be a path."""
    said = "there is no such folder" if "/" in str(ref) else "it is neither a folder nor a Hub id (user/name)"
    return f"no model at '{ref}': {said}"


def _fault(error: BaseException, name: str, revision: str | None, access: Access) -> str:
    said = explain(error, name, revision, access.token)
    return f"{said}; there is no folder {name} either" if "the connection to" in said else said


def client(access: Access = NOTHING) -> HfApi:
    """A client of the Hub that names hf-zipit as the caller."""
    token = access.token.strip() if access.token else None
    return HfApi(token=token, library_name="hf-zipit", library_version=__version__)


def _listing(api: HfApi, name: str, revision: str) -> tuple[str, set[str] | None]:
    """The current name of a repository and its files; if only the cache is available, the given name and `None`."""
    try:
        info = api.model_info(name, revision=revision)
    except (OfflineModeIsEnabled, httpx2.TransportError):
        return name, None
    except HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        return name, None
    if info.id != name:
        _log.warning("%s is now called %s; use the new name", name, info.id)
    return info.id, {entry.rfilename for entry in info.siblings or []}


def _weights(folder: Path, files: set[str] | None, access: Access, name: str) -> list[str]:
    """The names of the weight files to download; `files` is `None` if only the cache is available."""
    index = folder / INDEX
    if is_adapter(folder, files):
        return [ADAPTER_WEIGHTS]
    if files is None:
        return shards(read_json(index), index) if index.is_file() else [WEIGHTS]
    if WEIGHTS in files:
        return [WEIGHTS]
    if INDEX in files:
        return shards(read_json(index), index)
    pickled = [file for file in PICKLES if file in files][:1]
    if pickled and not access.allow_pickle:
        raise SourceError(only_pickled(name, pickled[0]))
    if not pickled:
        raise SourceError(f"{name} has no {WEIGHTS}")
    return pickled

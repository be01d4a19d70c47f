"""The rows of a data set: from a Hub id, a folder, parquet files, or a `datasets.Dataset`."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_zipit.data.folder import load_folder, load_table
from hf_zipit.errors import DataError, OptionError
from hf_zipit.sources.access import Access
from hf_zipit.sources.download import client
from hf_zipit.sources.faults import FAULTS, redact
from hf_zipit.text import first_line

_log = logging.getLogger("hf_zipit")
_COMMIT = re.compile(r"[0-9a-f]{40}")
TRAIN = ("train", "training")
TEST = ("test", "validation", "val", "valid")


def rows_of(data: Any, splits: Sequence[str], token: str | None = None) -> tuple[Any, str]:
    """The rows of a data set on the Hub, on disk or in memory, and its name.

    Args:
        data: a Hub id or a path, with or without `:split`, or a `datasets.Dataset` or `DatasetDict`.
        splits: the splits to prefer if none is named.
        token: an access token for the Hub.

    Raises:
        DataError: the data cannot be read.
        OptionError: there is no such split, or there are several and none is named.
    """
    if isinstance(data, str | Path):
        return _load(str(data), splits, token), display_name(data)
    return _one_split(data, splits, "the given dataset"), "the given dataset"


def _load(ref: str, splits: Sequence[str], token: str | None) -> Any:
    """A Hub id or path, with or without `:split`, as one `datasets.Dataset`."""
    import datasets

    named = hub_data(ref)
    ref, split = _split_of(ref)
    path = Path(ref)
    try:
        path = path.resolve()  # as the system does; `datasets` would take `link/..` for the folder of the link
        if path.is_dir():
            loaded: Any = load_folder(path)
        elif path.is_file() and path.suffix.lower() == ".parquet":
            loaded = load_table(path)
        elif path.exists():
            raise DataError(f"{ref}: only parquet files and folders can be read")
        elif named is not None:
            loaded = datasets.load_dataset(named[0], revision=named[1], token=token)
            _say_missing(*named, loaded, token)
            if split is None and splits is TEST and list(loaded) == [TRAIN[0]]:
                _log.warning("%s has no test split: all of its images are read (%s:train is silent)", ref, ref)
        else:
            raise DataError(f"no data at {ref}: it is neither a file nor a folder, and a Hub id has the form user/name")
    except DataError:
        raise
    except ConnectionError as error:
        if datasets.config.HF_HUB_OFFLINE:
            out = "HF_HUB_OFFLINE is set; unset it to download"
        else:
            out = "the Hub cannot be reached; try again, or pass a folder"
        raise DataError(f"cannot read data from {ref}: it is neither a path nor cached, and {out}") from error
    except Exception as error:  # `datasets` raises some twenty types here
        raise DataError(redact(f"cannot read data from {ref}: {first_line(error)}", token)) from error
    if split is None:
        return _one_split(loaded, splits, ref)
    if not isinstance(loaded, dict):
        raise OptionError(f"{ref} is one data set without splits; leave out ':{split}'")
    if split not in loaded:
        raise OptionError(f"{ref} has no split '{split}'; it has {', '.join(loaded)}")
    return loaded[split]


def _say_missing(name: str, revision: str | None, loaded: Any, token: str | None) -> None:
    """Warn if a repository of image files on the Hub holds more images than its splits, which come from file names."""
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    splits = list(loaded.values())
    if splits[0].info.builder_name != "imagefolder" or datasets.config.HF_HUB_OFFLINE:
        return
    try:
        files = client(Access(token)).list_repo_files(name, revision=revision, repo_type="dataset")
    except FAULTS as error:  # the images are in the cache, and may be used without the Hub
        _log.info("%s: its files cannot be listed: %s", name, redact(first_line(error), token))
        return
    images = [file for file in files if Path(file).suffix.lower() in ImageFolder.EXTENSIONS]
    read = sum(map(len, splits))
    if read < len(images):
        _log.warning(
            "%s: %d of its %d images are read: names of files and folders were taken for splits (%s)",
            *(name, read, len(images), ", ".join(loaded)),
        )


def _split_of(ref: str) -> tuple[str, str | None]:
    """A Hub id or path, and the split named after it."""
    if Path(ref).exists() or ":" not in ref:
        return ref, None
    ref, _, split = ref.rpartition(":")
    return ref, split


def hub_data(ref: str) -> tuple[str, str | None] | None:
    """Name and revision of a data set on the Hub; `None` if the reference is a path.

    A reference is `user/name` or `user/name@revision`, with or without `:split`.

    >>> hub_data("user/pets@main:test"), hub_data("./pets")
    (('user/pets', 'main'), None)
    """
    ref, _ = _split_of(ref)
    name, _, revision = ref.partition("@")
    if Path(ref).exists() or ref.startswith((".", "~")) or name.count("/") != 1 or name.startswith("/"):
        return None
    return name, revision or None


def pinned(ref: str, rows: Any) -> str:
    """A reference to a data set with the commit on the Hub that its rows were read from; a path is returned unchanged.

    The commit is found in the paths of the files that `datasets` has prepared.
    """
    named = hub_data(ref)
    commits = {Path(file["filename"]).parent.name for file in getattr(rows, "cache_files", None) or []}
    commit = next((found for found in commits if _COMMIT.fullmatch(found)), None)
    if named is None or commit is None:
        return ref
    split = _split_of(ref)[1]
    return f"{named[0]}@{commit}" + (f":{split}" if split else "")


def display_name(ref: str | Path) -> str:
    """What a data set is called in reports: without folders and commit."""
    path, split = _split_of(str(ref))
    return (Path(path).name if Path(path).exists() else path.partition("@")[0]) + (f":{split}" if split else "")


def _one_split(loaded: Any, splits: Sequence[str], name: str) -> Any:
    """The rows of the first of the preferred splits, or of the only split."""
    if not isinstance(loaded, dict):
        if not hasattr(loaded, "select"):
            raise DataError(f"{name} is streamed: load it with streaming=False")
        return loaded
    for split in splits:
        if split in loaded:
            _log.info("%s: the split '%s' is read", name, split)
            return loaded[split]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise OptionError(f"{name} has the splits {', '.join(loaded)}; name one of them, e.g. {name}:{next(iter(loaded))}")

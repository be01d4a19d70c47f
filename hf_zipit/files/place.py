"""Whether a folder can be written, found out by writing, before any work is done."""

import errno
import os
import shutil
from pathlib import Path

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.files.documents import is_plain
from hf_zipit.files.folders import must_stay
from hf_zipit.files.names import temporary_name

SAMPLE = 2**16  # bytes that are written and removed again


def check_place(folder: Path) -> None:
    """Check that a folder can be written where it is or will be; nothing is left there.

    Args:
        folder: an existing folder, or one to be created with the folders above it.

    Raises:
        OptionError: it has a name that no folder can have, or lies below a file.
        OutputError: there is no permission, the disk is full or read-only, or a link leads nowhere.
    """
    if not is_plain(str(folder)):
        raise OptionError(
            f"{str(folder)!r} cannot be an output folder: its name has control characters or bad encoding"
        )
    try:
        place = Path(os.path.realpath(folder))
        above = next(path for path in (place, *place.parents) if path.exists())
        if not above.is_dir():
            raise OptionError(f"cannot create {folder}: {above} is not a folder")
        if place.is_symlink():
            raise OutputError(f"{folder} is a symbolic link that leads to itself: remove it, or choose another folder")
        if folder.is_symlink() and above not in (place, place.parent):
            raise OutputError(
                f"{folder} is a link to {place}, but {place.parent} does not exist: create it, or mount it"
            )
        spot = above.parent if above == place and not must_stay(place) and _writable(place.parent) else above
        _try(spot, place, place.relative_to(above))
    except OSError as error:
        kind = OptionError if error.errno == errno.ENAMETOOLONG else OutputError
        raise kind(
            f"cannot write {folder}: {error.strerror or error}. Nothing was done; choose another folder"
        ) from None


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _try(spot: Path, place: Path, below: Path) -> None:
    """Create the folders and a file as they will be, under another name."""
    trial = spot / temporary_name(place, "new")
    try:
        (trial / below).mkdir(parents=True)
        with (trial / below / "sample").open("wb") as file:
            file.write(bytes(SAMPLE))
            file.flush()
            os.fsync(file.fileno())
    finally:
        shutil.rmtree(trial, ignore_errors=True)

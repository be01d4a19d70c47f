"""Folders that appear complete or not at all, even if the process is killed."""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from safetensors import SafetensorError

from hf_zipit.errors import OutputError
from hf_zipit.files.names import MARK, abandoned, temporary_name

_NEW, _OLD = "new", "old"
_ARRIVING = f"{MARK}.arriving"  # the names of the files that replace those moved aside
_LAST = "config.json"  # without it a folder is no model
_SWAP, _HERE = 2, -100  # RENAME_EXCHANGE and AT_FDCWD of Linux
_FOREIGN = frozenset({"lost+found"})  # what a file system puts into its own root


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """Provide a temporary folder whose content becomes that of `target` if the block succeeds.

    The temporary folder lies beside `target` and takes its place in one step. A symbolic link stays a link: the folder
    that it leads to is replaced. An error or an interruption in the block leaves everything as it was. A killed process
    leaves the temporary folder behind; the next write to `target` removes it.

    A folder that cannot be replaced (a mount point, the current folder, a folder in a read-only one) is written into,
    file by file: `config.json` goes first and comes last. If the process is killed in between, the folder has no
    `config.json`, so nothing takes it for a model, and the next write to it restores what it held.

    Files get the permissions that the umask and the folder's own rules give to any new file.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.

    >>> with write_atomically(Path("merged")) as folder:  # doctest: +SKIP
    ...     (folder / "README.md").write_text("hello")
    """
    try:
        place = Path(os.path.realpath(target))
        missing = [path for path in place.parents if not path.exists()]
        place.parent.mkdir(parents=True, exist_ok=True)
        recover(place)
        partial = _begin(place)
    except OSError as error:
        raise OutputError(_message(target, error)) from error
    try:
        yield partial
        _give_usual_permissions(partial)
        _commit(partial, place)
    except (OSError, SafetensorError) as error:
        raise OutputError(_message(target, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):  # what was created for nothing; stops at the first folder that holds something
            for path in missing:
                path.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether an existing folder holds nothing, or only what its file system put there."""
    return all(path.name in _FOREIGN for path in folder.iterdir())


def must_stay(folder: Path) -> bool:
    """Whether an existing folder cannot be replaced by another one: a mount point, or where this process is at work."""
    with suppress(OSError):  # the current folder may have been removed
        here = Path.cwd()
        if folder == here or folder in here.parents:
            return True
    with suppress(OSError):
        return os.path.ismount(folder) or any(d.mountpoint == str(folder) for d in psutil.disk_partitions(all=True))
    return False


def recover(place: Path) -> None:
    """Remove what killed processes of this machine left of writing `place`, and restore what they were replacing."""
    for folder in (place.parent, place):
        if not folder.is_dir():
            continue
        for aside in abandoned(folder, place, _OLD):
            if folder == place.parent and not place.exists():
                aside.rename(place)
            elif folder == place and not (place / _LAST).exists():
                _restore(aside, place)
            shutil.rmtree(aside, ignore_errors=True)
        for partial in abandoned(folder, place, _NEW):
            shutil.rmtree(partial, ignore_errors=True)


def _begin(place: Path) -> Path:
    """Create the temporary folder: beside `place`, or in it if it must stay."""
    if place.is_dir() and (must_stay(place) or not os.access(place.parent, os.W_OK | os.X_OK)):
        partial = place / temporary_name(place, _NEW)
        partial.mkdir()
        return partial
    partial = place.with_name(temporary_name(place, _NEW))
    partial.mkdir()
    if place.is_dir():  # which was made with care, perhaps
        with suppress(OSError):
            os.chown(partial, place.stat().st_uid, place.stat().st_gid)
        shutil.copymode(place, partial)
    return partial


def _commit(partial: Path, place: Path) -> None:
    """Let the temporary folder, or its content, take the place of what was there."""
    if not place.exists():
        partial.rename(place)
        return
    if partial.parent == place.parent:
        if _swap(partial, place):  # the temporary folder, which is removed in the end, now holds what was there
            return
        aside = place.with_name(temporary_name(place, _OLD))
        with suppress(OSError):  # a folder of somebody else, in one where everybody owns their own alone
            place.rename(aside)
            try:
                partial.rename(place)
            except BaseException:
                aside.rename(place)
                raise
            shutil.rmtree(aside, ignore_errors=True)
            return
    _write_into(partial, place)


def _write_into(partial: Path, place: Path) -> None:
    """Replace the content of a folder; see `write_atomically`."""
    earlier = [path for path in place.iterdir() if path.name not in _FOREIGN and not path.name.startswith(MARK)]
    aside = place / temporary_name(place, _OLD)
    aside.mkdir()
    try:
        for path in sorted(earlier, key=lambda path: path.name != _LAST):
            path.rename(aside / path.name)
        (aside / _ARRIVING).write_text(json.dumps([path.name for path in partial.iterdir()]), encoding="utf-8")
        for path in sorted(partial.iterdir(), key=lambda path: path.name == _LAST):
            _move(path, place)
    except BaseException:
        _restore(aside, place)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _restore(aside: Path, place: Path) -> None:
    """Undo `_write_into`: remove what arrived in a folder, and put back what was moved aside."""
    note = aside / _ARRIVING
    for name in json.loads(note.read_text(encoding="utf-8")) if note.is_file() else ():
        arrived = place / name
        shutil.rmtree(arrived) if arrived.is_dir() else arrived.unlink(missing_ok=True)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == _LAST):
        if path != note:
            path.rename(place / path.name)
    shutil.rmtree(aside)


def _move(path: Path, place: Path) -> None:
    """Move a file or folder into another folder, which may lie on another file system."""
    try:
        path.rename(place / path.name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy = place / temporary_name(path, _NEW)
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy2(path, copy)
        copy.rename(place / path.name)


def _swap(a: Path, b: Path) -> bool:
    """Let two folders change places in one step; `False` where the system or the disk cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _SWAP) == 0)


def _give_usual_permissions(folder: Path) -> None:
    """Give every file the permissions of a new file; libraries create some for their owner alone."""
    sample = folder / temporary_name(folder, _NEW)
    sample.touch()
    mode = sample.stat().st_mode & 0o777
    sample.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _message(target: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write {target}: {reason}. No partial result was left, and an earlier folder there is unchanged"

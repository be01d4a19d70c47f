"""A folder that appears whole or not at all, whenever the process that writes it ends."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors import SafetensorError

from hf_zipit.errors import OutputError

_NEW, _OLD = "new", "old"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside `target` to write into; it takes the place of `target` when the block ends well.

    An error removes it. A killed process leaves it, hidden and never under the name `target`, until the next write to
    the same place; if the kill came while an earlier folder was being replaced, the next write finds that one again.

    Raises:
        OutputError: the disk is full, or the folder cannot be written for another reason.

    >>> with whole_folder(Path("merged")) as folder:  # doctest: +SKIP
    ...     (folder / "README.md").write_text("hello")
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean(target)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(target, _NEW), dir=target.parent))
    except OSError as error:
        raise OutputError(_message(target, error)) from error
    try:
        yield partial
        _readable(partial)
        if target.exists():
            aside = Path(tempfile.mkdtemp(prefix=_prefix(target, _OLD), dir=target.parent))
            target.rename(aside / target.name)
            partial.rename(target)
            shutil.rmtree(aside)
        else:
            partial.rename(target)
    except (OSError, SafetensorError) as error:
        raise OutputError(_message(target, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _prefix(target: Path, kind: str) -> str:
    """The beginning of a temporary folder's name: it says who writes it."""
    return f".{target.name}.{kind}.{socket.gethostname()}.{os.getpid()}."


def _clean(target: Path) -> None:
    """Remove what killed processes of this machine left of earlier writes to the same place."""
    for kind in (_OLD, _NEW):
        start = f".{target.name}.{kind}.{socket.gethostname()}."
        for left in [p for p in target.parent.iterdir() if p.name.startswith(start)]:
            writer = left.name.removeprefix(start).partition(".")[0]
            if not writer.isdigit() or psutil.pid_exists(int(writer)):
                continue
            if kind == _OLD and (left / target.name).exists() and not target.exists():
                (left / target.name).rename(target)
            shutil.rmtree(left, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Temporary folders are private; what is kept gets the rights of any other file."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _message(target: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write {target}: {reason}. Nothing was left there, and what was there before is as it was"

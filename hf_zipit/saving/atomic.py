"""Atomic writes of a folder: it appears complete or not at all, even if the process is killed."""

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
def write_atomically(target: Path) -> Iterator[Path]:
    """Provide a temporary folder that replaces `target` if the block succeeds.

    The temporary folder is hidden and lies beside `target`. An error in the block removes it. A killed process leaves
    it behind; the next write to `target` removes it, and restores an earlier `target` that was being replaced.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.

    >>> with write_atomically(Path("merged")) as folder:  # doctest: +SKIP
    ...     (folder / "README.md").write_text("hello")
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clean_up(target)
        partial = Path(tempfile.mkdtemp(prefix=_prefix(target, _NEW), dir=target.parent))
    except OSError as error:
        raise OutputError(_message(target, error)) from error
    try:
        yield partial
        _make_readable(partial)
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
    """The prefix of a temporary folder's name, which identifies the writing process."""
    return f".{target.name}.{kind}.{socket.gethostname()}.{os.getpid()}."


def _clean_up(target: Path) -> None:
    """Remove temporary folders of processes on this machine that were killed while writing `target`."""
    for kind in (_OLD, _NEW):
        start = f".{target.name}.{kind}.{socket.gethostname()}."
        for leftover in [path for path in target.parent.iterdir() if path.name.startswith(start)]:
            writer = leftover.name.removeprefix(start).partition(".")[0]
            if not writer.isdigit() or psutil.pid_exists(int(writer)):
                continue
            earlier = leftover / target.name
            if kind == _OLD and earlier.exists() and not target.exists():
                earlier.rename(target)
            shutil.rmtree(leftover, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Give a temporary folder, which is private at first, the usual permissions."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _message(target: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot write {target}: {reason}. No partial result was left, and an earlier folder there is unchanged"

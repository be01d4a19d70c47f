"""Single files, replaced in one step."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hf_zipit.files.names import temporary_name


def write_file(path: Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file that appears complete or not at all; its folder must exist.

    Args:
        path: the file. A symbolic link stays, and the file that it leads to is replaced.
        content: text, bytes, or a function that writes to the path it is given.

    Raises:
        OSError: the file cannot be written; an earlier one is unchanged.
    """
    path = Path(os.path.realpath(path))
    begun = path.with_name(temporary_name(path, "file"))
    try:
        if callable(content):
            content(begun)
        else:
            begun.write_bytes(content.encode() if isinstance(content, str) else content)
        if path.exists():
            begun.chmod(path.stat().st_mode & 0o777)
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)


def with_data(path: Path) -> tuple[Path, Path]:
    """A file, and the file beside it that may hold its weights: `merged.onnx` and `merged.onnx.data`."""
    return path, path.with_name(f"{path.name}.data")


def write_with_data(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and, if `write` makes one, the data file beside it (see `with_data`): both complete, or neither.

    Args:
        path: the file; folders above it are created. A symbolic link stays, and the file that it leads to is replaced.
        write: writes to the path it is given, which has the name of the file and lies in a folder of its own. If it
            raises, nothing changes.

    Raises:
        OSError: a file cannot be written.
    """
    path = Path(os.path.realpath(path))
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_name(temporary_name(path, "file"))
    begun.mkdir()
    try:
        write(begun / path.name)
        (new, new_data), (_, data) = with_data(begun / path.name), with_data(path)
        if new_data.exists() or data.exists():
            path.unlink(missing_ok=True)  # a process killed from here on leaves no file that reads the wrong data
            new_data.replace(data) if new_data.exists() else data.unlink()
        new.replace(path)
    finally:
        shutil.rmtree(begun, ignore_errors=True)
        with suppress(OSError):  # what was created for nothing; stops at the first folder that holds something
            for folder in missing:
                folder.rmdir()

"""Single files, replaced in one step."""

import os
from collections.abc import Callable
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

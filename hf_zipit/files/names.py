"""Names of temporary files and folders. They tell which process of which machine writes what."""

import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

MARK = ".zipit"


def temporary_name(target: Path, kind: str) -> str:
    """A new name for what will become `target`: short, hidden, and never the same in two threads or on two machines.

    Args:
        target: the file or folder that is being written.
        kind: what the name stands for, one word.
    """
    return f"{_start(target, kind)}.{os.getpid()}.{secrets.token_hex(6)}"


def abandoned(folder: Path, target: Path, kind: str) -> Iterator[Path]:
    """What processes of this machine left in `folder` when they were killed while writing `target`.

    What other machines or living processes write there is not among it.
    """
    named = re.compile(re.escape(_start(target, kind)) + r"\.(\d+)\.[0-9a-f]+")
    for path in list(folder.iterdir()):
        found = named.fullmatch(path.name)
        if found and not psutil.pid_exists(int(found[1])):
            yield path


def _start(target: Path, kind: str) -> str:
    """The part of a name that all processes of this machine share."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]  # the name itself may be as long as is allowed
    return f"{MARK}.{digest}.{kind}.{_machine()}"


@cache
def _machine() -> str:
    """Tells machines apart that share a folder, and containers, whose process ids mean nothing to each other."""
    known = b""
    with suppress(OSError):
        known += Path("/etc/machine-id").read_bytes()
    with suppress(OSError):
        known += os.fsencode(os.readlink("/proc/self/ns/pid"))
    host = re.sub(r"[^\w-]", "-", socket.gethostname())[:64]  # no dots, which separate the parts
    return f"{host}-{hashlib.sha256(known).hexdigest()[:8]}"

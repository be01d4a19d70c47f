"""What jobs run in these tests, in another process."""

import logging
import os
import signal
import time
from pathlib import Path

from hf_zipit.errors import DataError
from hf_zipit.files.folders import write_atomically
from hf_zipit.progress import progress


def add(a, b):
    for _ in progress(range(3), "Adding"):
        logging.getLogger("hf_zipit").warning("slow,\nbut sure")
    return a + b


def fail(message):
    raise DataError(message)


def break_down():
    raise KeyError("hf_abcdefghijklmnop")


def vanish():
    os._exit(7)


def write_for_ever(place, begun, stubborn=False):
    """Write a folder and never end; a stubborn process does not end when it is asked to."""
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with write_atomically(Path(place)) as partial:
        (partial / "half").write_text("written")
        Path(begun).touch()
        time.sleep(600)


def merge_and_linger(order, drawn):
    order.out.mkdir(parents=True)
    (order.out / "config.json").touch()
    (drawn.parent / "begun").touch()
    time.sleep(600)


def merge_for_ever(order, drawn):
    write_for_ever(order.out, drawn.parent / "begun", stubborn=True)

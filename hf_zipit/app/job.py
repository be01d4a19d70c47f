"""One piece of work in a process of its own, which tells how far it is and can be stopped at any time."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from hf_zipit.commands.terminal import end_in_order, message_of, quieten, without_bars

GRACE = 5.0  # seconds in which a process that is to end may tidy up, before it is killed
RATE = 0.1  # seconds between two reports of one bar
LOADED = ["torch", "timm", "transformers", "datasets", "hf_zipit.commands.making", "hf_zipit.merging.merge"]


@dataclass(frozen=True)
class Stage:
    """How far the work is.

    Attributes:
        label: what is being done.
        done: items of it that are done.
        total: items in all; `None` if that is unknown.
        since: when it began, as of `time.monotonic`.
    """

    label: str
    done: int
    total: int | None
    since: float

    @property
    def seconds_left(self) -> float | None:
        """The time to the end of this stage at the mean speed so far; `None` if it is unknown."""
        if not self.total or not self.done:
            return None
        return (time.monotonic() - self.since) * (self.total - self.done) / self.done


class Job:
    """A function that runs in another process.

    The process has its own memory, so that it can be ended at any time, and an end for lack of memory is not that of
    the app.

    Args:
        run: a function of a module. What it takes and returns is sent between the processes.
        arguments: its arguments.
        title: what it does, for people.
        then: called with the job in the end, whatever that is, while it still counts as running.

    Attributes:
        stages: how far it is: a stage, and others inside it; none before the first.
        began: when it began, as of `time.monotonic`.
        said: warnings, in order.
        result: what the function returned, once it has.
        fault: why there is no result, in one line; `None` while it runs, or if it was cancelled.
        cancelled: whether it was cancelled before it was done.

    >>> job = Job(sorted, [3, 1, 2])  # doctest: +SKIP
    >>> job.wait().result  # doctest: +SKIP
    [1, 2, 3]
    """

    def __init__(
        self,
        run: Callable[..., Any],
        *arguments: Any,
        title: str = "Work",
        then: Callable[["Job"], None] = lambda job: None,
    ) -> None:
        self.title = title
        self._then = then
        self.stages: tuple[Stage, ...] = ()
        self.began = time.monotonic()
        self.said: list[str] = []
        self.result: Any = None
        self.fault: str | None = None
        self.cancelled = False
        self._done = False
        self._lock = threading.Lock()
        context = _context()
        receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(sender, run, arguments), daemon=True)
        self.process.start()
        sender.close()
        self._listener = threading.Thread(target=self._listen, args=(receiver,), daemon=True)
        self._listener.start()

    @property
    def running(self) -> bool:
        """Whether the work goes on. Once it does not, its process has ended."""
        return self._listener.is_alive()

    def wait(self, seconds: float | None = None) -> "Job":
        """Wait until the work has ended, or for some seconds."""
        self._listener.join(seconds)
        return self

    def cancel(self) -> None:
        """End the process and wait until it has ended; nothing happens if its work is done."""
        with self._lock:
            if self._done:
                return
            self.cancelled = True
        self.process.terminate()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
        self.wait()

    def _listen(self, receiver: Connection) -> None:
        """Receive what the process tells, until it ends."""
        ended = False
        with contextlib.suppress(EOFError, OSError):
            while not ended:
                ended = self._hear(*receiver.recv())
        receiver.close()
        self.process.join()
        if not ended and not self.cancelled:
            self.fault = (
                f"the work ended without a result (exit code {self.process.exitcode}): perhaps there was not enough "
                "memory; try fewer images"
            )
        self._then(self)

    def _hear(self, kind: str, *values: Any) -> bool:
        """Keep what was told; whether that is the end."""
        if kind == "stage":
            self.stages = moved(self.stages, *values)
        elif kind == "said":
            self.said += values
        else:
            with self._lock:
                self._done = not self.cancelled
            if self._done:
                self.result, self.fault = (values[0], None) if kind == "result" else (None, values[0])
            return True
        return False


def moved(stages: Sequence[Stage], label: str, done: int, total: int | None) -> tuple[Stage, ...]:
    """The stages after a step of one of them; those inside it have ended, and so has itself after its last step.

    >>> [stage.label for stage in moved(moved((), "Trying", 0, 3), "Matching", 0, 5)]
    ['Trying', 'Matching']
    """
    names = [stage.label for stage in stages]
    depth = names.index(label) if label in names else len(stages)
    outer = tuple(stages[:depth])
    if done == total:
        return outer
    since = stages[depth].since if label in names and done else time.monotonic()
    return (*outer, Stage(label, done, total, since))


def warm_up() -> None:
    """Begin to load the libraries that work needs, in the background, where the system can share them."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _context() -> Any:
    """How processes are started: copies of one that has loaded the libraries, or else new ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    return context


def _work(sender: Connection, run: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Run a function in this process, and send what happens."""
    from hf_zipit.progress import watched
    from hf_zipit.sources.faults import redact

    quieten()
    without_bars()
    end_in_order()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the app ends this process when it ends itself
    wire = _Wire(sender)
    logging.getLogger("hf_zipit").handlers = [_Sent(wire)]
    try:
        with watched(_Reports(wire)):
            result = run(*arguments)
        wire.send("result", result)
    except Exception as error:
        if os.environ.get("HF_DEBUG"):
            sys.stderr.write(redact(traceback.format_exc()))
        wire.send("fault", redact(message_of(error)))


class _Wire:
    """Sends messages of several threads."""

    def __init__(self, sender: Connection) -> None:
        self._sender = sender
        self._lock = threading.Lock()

    def send(self, *message: Any) -> None:
        with self._lock:
            self._sender.send(message)


class _Reports:
    """Sends the steps of progress bars, not more often than anybody can see."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire
        self._last = ("", 0.0)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done not in (0, total) and self._last[0] == label and now < self._last[1] + RATE:
            return
        self._last = (label, now)
        self._wire.send("stage", label, done, total)


class _Sent(logging.Handler):
    """Sends warnings."""

    def __init__(self, wire: _Wire) -> None:
        super().__init__(logging.WARNING)
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        from hf_zipit.sources.faults import redact

        self._wire.send("said", redact(" ".join(record.getMessage().splitlines())))

"""The law that every command obeys, whatever it is given.

It succeeds: the saved result has finite weights and outputs, it is plausible, and a second run repeats it. Or it fails:
one message on stderr, exit code 1 or 2, no traceback, and nothing left behind. In both cases its inputs are unchanged,
and it takes at most a minute and 2 GB of further memory.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file

from hf_zipit import cli
from hf_zipit.saving.load import is_merge, load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.sources.preprocessing import preprocessing_of

SECONDS = 60
MEMORY = 2 * 2**30
LONGEST = 3000  # characters of one message
OUT = "OUT"  # stands for the output folder in the arguments of a case
TOLD = ("Warning: ", "Info: ", "Debug: ")
CHOSEN = ("Chosen: ", "- ", "Cost: ")  # what a merge says of its own choices; the worlds are too small for a verdict


@dataclass(frozen=True)
class Case:
    """A command with an odd input.

    Attributes:
        what: the odd input in words.
        arguments: of the command line.
        images: the number of images that a merge must have read, unless it says what it leaves out.
        succeeds: whether the command must succeed or must fail, where only one of both is right.
        same: a command that must make the same weights.
        changes: an input, in the working folder, that the command changes if it succeeds.
    """

    what: str
    arguments: Sequence[str | Path]
    images: int | None = None
    succeeds: bool | None = None
    same: Sequence[str | Path] | None = None
    changes: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `crash` is the traceback of an error that it let pass."""

    code: int
    out: str
    err: str
    crash: str = ""


class TooLong(BaseException):
    """A command ran for too long. No handler of ordinary errors catches it."""


def run(arguments: Sequence[str | Path]) -> Outcome:
    """Run a command in this process as in a new one: with its own environment and with visible warnings."""
    out, err = io.StringIO(), io.StringIO()
    code, crash = 0, ""
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", ["hf-zipit", *map(str, arguments)]),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _logs_to(err),
        _limits(),
    ):
        _usual_warnings()
        try:
            cli.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except (Exception, TooLong):
            code, crash = 1, traceback.format_exc()
    return Outcome(code, out.getvalue(), err.getvalue(), crash)


def _usual_warnings() -> None:
    """Show warnings on stderr, and only those that Python shows by default."""
    warnings.simplefilter("default")
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)
    warnings.showwarning = lambda *about, **_: sys.stderr.write(warnings.formatwarning(*about[:4]))


@contextlib.contextmanager
def _logs_to(err: io.StringIO) -> Iterator[None]:
    """Send what libraries log to the stderr of the command: their handlers keep the stderr of their import."""
    loggers = [log for log in logging.root.manager.loggerDict.values() if isinstance(log, logging.Logger)]
    handlers = {h for log in loggers for h in log.handlers if type(h) is logging.StreamHandler}
    with contextlib.ExitStack() as stack:
        for handler in handlers:
            stack.enter_context(mock.patch.object(handler, "stream", err))
        yield


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Limit time and memory."""

    def stop(*_: Any) -> None:
        raise TooLong(f"longer than {SECONDS} seconds")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check(case: Case, folder: Path, read_only: Path, again: bool = True) -> Path | None:
    """Run a case and hold it against the law.

    Args:
        case: the case; its inputs lie in `folder` or in `read_only`.
        folder: the working folder of the command.
        read_only: a folder with further inputs.
        again: whether to run a command that saves a model a second time.

    Returns:
        What the command has saved, if it has saved a model.
    """
    temporary = folder.parent / f"{folder.name}-tmp"
    temporary.mkdir()
    before = contents(folder), contents(read_only)
    with contextlib.chdir(folder), mock.patch.object(tempfile, "tempdir", str(temporary)):
        arguments = [*case.arguments]
        outcome = run(arguments)
        told = f"{case.what}\n  hf-zipit {' '.join(map(str, arguments))}\n  exit code {outcome.code}\n{outcome.err}"
        assert not outcome.crash, f"{told}\n{outcome.crash}"
        assert "internal error" not in outcome.err, f"{told}\n{run([*arguments, '--debug']).err}"
        saved = folder / OUT
        try:
            _check_messages(outcome)
            assert case.succeeds in (None, outcome.code == 0), (
                "this must succeed" if case.succeeds else "this must fail"
            )
            after = contents(folder)
            assert contents(read_only) == before[1], "an input changed"
            assert not _altered(before[0], after, case.changes), "an input changed"
            assert not any(temporary.iterdir()), f"left in the temporary folder: {list(temporary.iterdir())}"
            if outcome.code:
                assert after == before[0], f"changed or left behind: {sorted(after.keys() - before[0].keys())}"
                return None
            _check_output(outcome, case)
            if case.arguments[0] == "eval":
                _check_finite(outputs(Path(case.arguments[1])))
            if (saved / "config.json").is_file():
                _check_saved(saved, case, outcome.err)
                if again:
                    _check_repeated(arguments, saved)
                if case.same is not None:
                    _check_same(case.same, saved)
                return saved
        except AssertionError as error:
            raise AssertionError(f"{error}\n  {told}") from None
    return None


def contents(folder: Path) -> dict[str, str]:
    """Every file, link and folder in a folder, with a digest of its content."""
    found = {}
    for above, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(above, name)
            about = os.readlink(path) if path.is_symlink() else "" if path.is_dir() else _digest(path)
            found[str(path.relative_to(folder))] = about
    return found


def _altered(before: dict[str, str], after: dict[str, str], but: str | None) -> set[str]:
    """What has changed of what was there before, except what a command is meant to change."""
    return {k for k, v in before.items() if after.get(k) != v and (but is None or not k.startswith(but))}


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_messages(outcome: Outcome) -> None:
    """A failure is one message; everything else on stderr is a warning, one line each."""
    assert "Traceback" not in outcome.err, "a traceback"
    lines = [line for line in outcome.err.splitlines() if line and not line.startswith(CHOSEN)]
    if outcome.code == 0:
        assert all(line.startswith(TOLD) for line in lines), f"stderr holds more than messages: {lines}"
        return
    assert outcome.code in (1, 2)
    assert outcome.out == ""
    if lines and lines[0].lstrip().startswith("Usage:"):  # of the command line itself
        assert outcome.code == 2
        return
    errors = [line for line in lines if line.startswith("Error: ")]
    assert len(errors) == 1, f"{len(errors)} messages"
    assert all(line.startswith((*TOLD, "Error: ")) for line in lines), f"stderr holds more than messages: {lines}"
    assert len(errors[0]) < LONGEST, f"a message of {len(errors[0])} characters"


def _check_output(outcome: Outcome, case: Case) -> None:
    """What is printed as JSON is JSON, in which every number is finite, and accuracies are shares."""
    if "--json" not in case.arguments:
        return
    shown = json.loads(outcome.out, parse_constant=_refuse)
    for row in shown["rows"] if case.arguments[0] == "eval" else []:
        scores = [*row["tasks"].values(), row.get("average", 0), row.get("joint", 0)]
        assert all(0 <= score <= 1 for score in scores), row


def _refuse(constant: str) -> None:
    raise AssertionError(f"the JSON holds {constant}")


def _check_saved(saved: Path, case: Case, err: str) -> None:
    """The saved model has finite weights and outputs, and says of it what is true."""
    json.loads((saved / "config.json").read_text(encoding="utf-8"), parse_constant=_refuse)
    for file in saved.glob("*.safetensors"):
        for name, value in load_file(file).items():
            assert bool(torch.isfinite(value.double()).all()), f"{name} of the saved model is not finite"
    _check_finite(outputs(saved))
    if not is_merge(saved):
        return
    config = load_merged(saved).config
    for head in config.heads:
        assert sorted(head["id2label"]) == list(range(len(head["id2label"])))
        assert all(isinstance(name, str) for name in head["id2label"].values()), head
    if case.images is not None:
        found = [part["num_images"] for part in config.zipit["data"]]
        assert found == [case.images] or "left out" in err or "skipped" in err, f"{found} images, not {case.images}"


def _check_finite(found: dict[str, torch.Tensor]) -> None:
    for task, value in found.items():
        assert bool(torch.isfinite(value).all()), f"the outputs of {task} are not finite"


def outputs(saved: Path) -> dict[str, torch.Tensor]:
    """The outputs of a saved model on two images, by task."""
    pixels = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        if not is_merge(saved):
            source = load_source(saved)
            out = source.model(torch.randn(2, *source.input_size, generator=pixels))
            return {source.name: out if isinstance(out, torch.Tensor) else out.logits}
        merged = load_merged(saved)
        found = merged(torch.randn(2, *preprocessing_of(merged)[0], generator=pixels))
        return dict(found.task_logits if hasattr(found, "task_logits") else found.outputs)


def _check_repeated(arguments: Sequence[str | Path], saved: Path) -> None:
    """The same command makes the same files again."""
    first = contents(saved)
    kept = saved.rename(saved.with_name("first"))
    outcome = run(arguments)
    assert outcome.code == 0, f"the second run fails: {outcome.err}{outcome.crash}"
    differing = {k for k, v in contents(saved).items() if first.get(k) != v}
    shutil.rmtree(kept)
    assert not differing - {"results.png"}, f"the second run differs in {differing}"


def _check_same(arguments: Sequence[str | Path], saved: Path) -> None:
    """Another command makes the same weights."""
    kept = saved.rename(saved.with_name("first"))
    outcome = run(arguments)
    assert outcome.code == 0, f"the reference fails: {outcome.err}{outcome.crash}"
    mine, other = (load_file(folder / "model.safetensors") for folder in (kept, saved))
    shutil.rmtree(saved)
    kept.rename(saved)
    far = max(float((mine[name] - other[name]).abs().max()) for name in mine)
    assert far < 1e-4, f"weights differ by {far:g} from those that the same images give"

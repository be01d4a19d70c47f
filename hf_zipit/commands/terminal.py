"""Terminal output of all commands: results on stdout, everything else on stderr, no messages of other libraries."""

import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hf_zipit.commands.help import HELP_ALL
from hf_zipit.errors import ZipItError
from hf_zipit.text import first_line

LONGEST = 2000  # characters of an error message, which may quote what a user or a library wrote


def painted(text: str, **style: Any) -> str:
    """A text with the colors of `typer.style`, which are left out unless it is printed on a terminal."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, **style)


def show(text: Any) -> None:
    """Print a result."""
    typer.echo(text)


def show_table(text: str) -> None:
    """Print a result that begins with the header of a table."""
    header, line_break, rest = text.partition("\n")
    typer.echo(painted(header, bold=True) + line_break + rest)


def show_aside(text: str) -> None:
    """Print what a user should read beside the result; hidden by `-q`."""
    if logging.getLogger("hf_zipit").isEnabledFor(logging.WARNING):
        typer.echo(text, err=True)


class _OnStderr(logging.Handler):
    """Writes each message as one line, such as `Warning: ...`, to the current stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        from hf_zipit.sources.faults import redact

        message = " ".join(record.getMessage().splitlines())  # names of classes and files may hold line breaks
        color = "yellow" if record.levelno >= logging.WARNING else None
        typer.echo(f"{painted(record.levelname.capitalize(), fg=color)}: {redact(message)}", err=True)


VERBOSE = Annotated[
    int, typer.Option("-v", "--verbose", count=True, show_default=False, help="Report progress; -vv reports details.")
]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress bars and warnings.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def takes_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--help-all`, and `-v`, `-q` and `--debug`, which are also accepted before the command's name."""
    signature = inspect.signature(command)
    extra = [
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VERBOSE),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QUIET),
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DEBUG),
        inspect.Parameter("help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=HELP_ALL),
    ]

    def run(verbose: int, quiet: bool, debug: bool, help_all: bool, **values: Any) -> None:
        if verbose or quiet:
            set_verbosity(-1 if quiet else verbose)
        show_tracebacks(debug)
        command(**values)

    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *extra]
    )
    return run


def show_tracebacks(wanted: bool) -> None:
    """Turn tracebacks on if wanted, by the same variable as the Hub's own libraries."""
    if wanted:
        os.environ["HF_DEBUG"] = "1"


def set_verbosity(level: int) -> None:
    """Set what is reported on stderr: -1 only errors and no progress bars, 0 warnings, 1 progress, 2 details."""
    log = logging.getLogger("hf_zipit")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _OnStderr)] + [_OnStderr()]
    log.setLevel({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(level, logging.DEBUG))
    if level < 0:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def quieten() -> None:
    """Silence other libraries and their progress bars for short steps, and all progress bars outside a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("timm").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it reports errors that it also raises


def message_of(error: Exception) -> str:
    """What went wrong in one line of limited length; see `_message_of`."""
    text = _message_of(error)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def _message_of(error: Exception) -> str:
    """What went wrong in one line, with a way out; an error that nobody foresaw is named as such."""
    if isinstance(error, ZipItError):
        return " ".join(str(error).split()) if "\n" in str(error) else str(error)
    name = type(error).__name__
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate" in str(error):
        return (
            f"there is not enough memory ({first_line(error)}): use a smaller --batch-size, fewer --num-images, or "
            "another --device"
        )
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}; run again with --debug for details"
    said = first_line(error)
    what = name if said == name else f"{name}: {said}"
    return f"internal error ({what}); run again with --debug and report it"


def end_in_order() -> None:
    """Let a request to terminate end the program like an interruption, so that nothing is left behind."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


def leave_group() -> None:
    """Leave the group of processes that a launcher started: its threads can abort a process that ends inside it."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def without_bars() -> None:
    """Hide progress bars for reading and writing weights. This imports transformers, so call it only where needed."""
    from hf_zipit.sources.from_transformers import hide_progress_bars

    hide_progress_bars()

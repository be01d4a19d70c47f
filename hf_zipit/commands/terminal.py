"""Terminal output of all commands: results on stdout, everything else on stderr, no messages of other libraries."""

import inspect
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer


def show(text: Any) -> None:
    """Print a result."""
    typer.echo(text)


def show_json(value: Any) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(value, indent=2))


class _OnStderr(logging.Handler):
    """Writes each message as one line, such as `Warning: ...`, to the current stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        from hf_zipit.sources.faults import redact

        typer.echo(redact(f"{record.levelname.capitalize()}: {record.getMessage()}"), err=True)


VERBOSE = Annotated[
    int, typer.Option("-v", "--verbose", count=True, show_default=False, help="Report progress; -vv reports details.")
]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="Hide progress bars and warnings.")]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


def takes_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `-v`, `-q` and `--debug`, which are also accepted before the command's name."""
    signature = inspect.signature(command)
    extra = [
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=0, annotation=VERBOSE),
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QUIET),
        inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DEBUG),
    ]

    def run(verbose: int, quiet: bool, debug: bool, **values: Any) -> None:
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


def without_bars() -> None:
    """Hide progress bars for reading and writing weights. This imports transformers, so call it only where needed."""
    from hf_zipit.sources.from_transformers import hide_progress_bars

    hide_progress_bars()

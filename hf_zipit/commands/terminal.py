"""What every command does to the terminal: results on stdout, everything else on stderr, no chatter of libraries."""

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
    """One line per message, as `Warning: ...`, on what stderr is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        from hf_zipit.sources.faults import redact

        typer.echo(redact(f"{record.levelname.capitalize()}: {record.getMessage()}"), err=True)


VERBOSE = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Tell what is done; -vv in detail.")]
QUIET = Annotated[bool, typer.Option("-q", "--quiet", help="No bars and no warnings.")]

DEBUG = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def takes_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `-v`, `-q` and `--debug`, which may stand before it as well."""
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
    """With `--debug`, in the way of the Hub's own libraries."""
    if wanted:
        os.environ["HF_DEBUG"] = "1"


def set_verbosity(level: int) -> None:
    """What is told on stderr: -1 errors only and no bars, 0 warnings, 1 what is done, 2 in detail."""
    log = logging.getLogger("hf_zipit")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, _OnStderr)] + [_OnStderr()]
    log.setLevel({-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(level, logging.DEBUG))
    if level < 0:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def quieten() -> None:
    """Keep the libraries' chatter and their bars for steps of a second off the terminal, and all bars off a file."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("timm").setLevel(logging.ERROR)


def without_bars() -> None:
    """Loading and writing weights takes no time worth a bar; needs transformers, so only where it is loaded anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

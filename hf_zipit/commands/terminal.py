"""What every command does to the terminal: results on stdout, everything else on stderr, no chatter of libraries."""

import json
import logging
import os
from typing import Any

import typer


def show(text: Any) -> None:
    """Print a result."""
    typer.echo(text)


def show_json(value: Any) -> None:
    """Print a result as JSON."""
    typer.echo(json.dumps(value, indent=2))


def quieten() -> None:
    """Keep the libraries' chatter and their bars for steps of a second off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("timm").setLevel(logging.ERROR)


def without_bars() -> None:
    """Loading and writing weights takes no time worth a bar; needs transformers, so only where it is loaded anyway."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()

"""The command line `hf-zipit`, assembled from the modules of `commands`."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from hf_zipit.app.command import app as browser_app
from hf_zipit.commands.cache import cache
from hf_zipit.commands.check_spec import check_spec
from hf_zipit.commands.compare import compare
from hf_zipit.commands.diagnose import diagnose
from hf_zipit.commands.evaluate import evaluate
from hf_zipit.commands.export import export
from hf_zipit.commands.fold import fold
from hf_zipit.commands.help import PlainGroup, plain_help
from hf_zipit.commands.inspect import inspect
from hf_zipit.commands.merge import merge
from hf_zipit.commands.push import push
from hf_zipit.commands.recipe import recipe
from hf_zipit.commands.terminal import (
    DEBUG,
    QUIET,
    VERBOSE,
    end_in_order,
    leave_group,
    message_of,
    painted,
    quieten,
    set_verbosity,
    show_tracebacks,
    takes_verbosity,
)
from hf_zipit.commands.trace import trace
from hf_zipit.errors import OptionError

COMMANDS: dict[str, Callable[..., None]] = {
    "merge": merge,
    "fold": fold,
    "push": push,
    "eval": evaluate,
    "export": export,
    "inspect": inspect,
    "check-spec": check_spec,
    "trace": trace,
    "recipe": recipe,
    "compare": compare,
    "diagnose": diagnose,
    "cache": cache,
    "app": browser_app,
}

app = typer.Typer(
    cls=PlainGroup,
    help="Merge models trained on different tasks into one model, without training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode=None,
)
for _name, _command in COMMANDS.items():
    _complete = takes_verbosity(_command)
    app.command(_name, cls=plain_help(_complete))(_complete)


def _version(wanted: bool) -> None:
    if wanted:
        from hf_zipit import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    verbose: VERBOSE = 0,
    quiet: QUIET = False,
    debug: DEBUG = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Take the options that all commands have in common."""
    set_verbosity(-1 if quiet else verbose)
    show_tracebacks(debug)
    quieten()


def run() -> None:
    """Run the command line. Whatever goes wrong is one message on stderr and an exit code, never a traceback.

    The exit code is 1, or 2 for wrong usage; 130 and 143 if the run was interrupted or terminated. `--debug` shows
    tracebacks.
    """
    end_in_order()
    try:
        app()
    except SystemExit as end:
        if not end.code:  # after an error the others may still wait for this process
            leave_group()
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from hf_zipit.sources.faults import redact

        if os.environ.get("HF_DEBUG"):
            typer.echo(redact(traceback.format_exc()), err=True)
        typer.echo(f"{painted('Error', fg='red')}: {redact(message_of(error))}", err=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)

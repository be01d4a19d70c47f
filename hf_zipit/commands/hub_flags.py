"""Options that concern the Hub: what the user allows when models are read, and where a result goes."""

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hf_zipit.commands.terminal import without_bars
from hf_zipit.sources.access import Access

_TOKEN = Annotated[
    str | None, typer.Option("--token", help="Access token of the Hub; default: HF_TOKEN or `hf auth login`.")
]
_TRUST = Annotated[bool, typer.Option("--trust-remote-code", help="Run code files that come with a model.")]
_PICKLE = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin weights where there are no others, as weights only.")
]
PushTo = Annotated[str | None, typer.Option("--push-to", help="Upload the result to this repository, user/name.")]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Of a new repository; default: the account's settings.")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Upload to this branch; made if there is none.")]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing to main.")]
Message = Annotated[str | None, typer.Option("--message", help="Title of the commit or the pull request.")]


def takes_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that has a parameter `access` the flags for it; one that reads no models gets `--token` alone.

    A token holds for models, images and uploads.
    """
    signature = inspect.signature(command)
    reads = "access" in signature.parameters
    own = [p for p in signature.parameters.values() if p.name != "access"]
    kinds = {"token": (None, _TOKEN), "trust_remote_code": (False, _TRUST), "allow_pickle": (False, _PICKLE)}
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in kinds.items()
        if reads or name == "token"
    ]

    def run(token: str | None, **values: Any) -> None:
        without_bars()
        if token:
            os.environ["HF_TOKEN"] = token.strip()
        if reads:
            values["access"] = Access(None, values.pop("trust_remote_code"), values.pop("allow_pickle"))
        command(**values)

    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return run

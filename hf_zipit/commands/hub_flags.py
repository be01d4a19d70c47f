"""Options that concern the Hub: what the user allows when models are loaded, and where a result is uploaded."""

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import typer

from hf_zipit.commands.terminal import without_bars
from hf_zipit.sources.access import Access

_TOKEN = Annotated[
    str | None,
    typer.Option("--token", help="Access token of the Hub. Default: HF_TOKEN, or the login of `hf auth login`."),
]
_TRUST = Annotated[bool, typer.Option("--trust-remote-code", help="Run code files that come with a model.")]
_PICKLE = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read .bin weights if a model has no others. They are opened by torch's restricted unpickler.",
    ),
]
PushTo = Annotated[str | None, typer.Option("--push-to", help="Hub repository for the result, user/name.")]
Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="Visibility of a new repository. Default: the account setting."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch to upload to; created if needed. Default: main.")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing to main.")]
Message = Annotated[str | None, typer.Option("--message", help="Title of the commit or pull request.")]


def takes_access(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the flags for access to models and the Hub.

    A command with a parameter `access` gets all of them. Others load no models and get only `--token`, which is used
    for models, images and uploads alike.
    """
    signature = inspect.signature(command)
    loads = "access" in signature.parameters
    own = [p for p in signature.parameters.values() if p.name != "access"]
    kinds = {"token": (None, _TOKEN), "trust_remote_code": (False, _TRUST), "allow_pickle": (False, _PICKLE)}
    flags = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in kinds.items()
        if loads or name == "token"
    ]

    def run(token: str | None, **values: Any) -> None:
        without_bars()
        if token:
            os.environ["HF_TOKEN"] = str(Access(token).token).strip()
        if loads:
            values["access"] = Access(None, values.pop("trust_remote_code"), values.pop("allow_pickle"))
        command(**values)

    run.__doc__ = command.__doc__
    run.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return run

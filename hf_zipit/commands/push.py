"""`hf-zipit push`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.hub_flags import CreatePr, Message, Private, Revision, takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json
from hf_zipit.commands.terminal import show


@takes_access
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of a merged model, or of a checkpoint exported from one.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, user/name; created if needed.")],
    private: Private = None,
    revision: Revision = None,
    create_pr: CreatePr = False,
    message: Message = None,
    as_json: Json = False,
) -> None:
    """Upload a merged model to the Hub, or resume a failed upload."""
    from hf_zipit.saving.push import push as run

    address = run(folder, repo, private=private, revision=revision, create_pr=create_pr, commit_message=message)
    if as_json:
        show_json("push", {"folder": str(folder), "repository": repo, "address": address})
    else:
        show(address)

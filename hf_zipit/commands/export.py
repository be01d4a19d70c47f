"""`hf-zipit export`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import Json, License, Overwrite
from hf_zipit.commands.terminal import show, show_json
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


@takes_access
def export(
    model: Annotated[str, typer.Argument(help="A merged model: folder or Hub id.")],
    access: Access,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint.")],
    library: Annotated[str, typer.Option("--format", help="timm or transformers: the library of the parents.")],
    task: Annotated[str | None, typer.Option(help="Keep this task only; default: one classifier for all.")] = None,
    license: License = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a fully merged model as an ordinary timm or transformers checkpoint, which loads without hf-zipit."""
    from hf_zipit.saving import load as loading
    from hf_zipit.saving import save as saving

    if library == "zipit":
        raise OptionError("--format zipit is what a merge has already: name timm or transformers")
    saving.check_output(out, overwrite)
    merged = loading.load(model, access)
    saving.save(merged, out, overwrite=overwrite, library=library, task=task, license=license)
    if as_json:
        show_json({"folder": str(out), "format": library, "tasks": [task] if task else merged.config.tasks})
    else:
        show(out)

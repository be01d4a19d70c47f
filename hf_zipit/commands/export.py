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
    model: Annotated[str, typer.Argument(help="Merged model: Hub id or folder.")],
    access: Access,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the checkpoint.")],
    library: Annotated[str, typer.Option("--format", help="Library of the parents: timm or transformers.")],
    task: Annotated[
        str | None, typer.Option(help="Export only this task. Default: one classifier over the classes of all tasks.")
    ] = None,
    license: License = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a full merge as an ordinary timm or transformers checkpoint, which loads without hf-zipit."""
    from hf_zipit.saving import save as saving
    from hf_zipit.saving.load import load_merged

    if library == "zipit":
        raise OptionError(
            "a merge is already in the format zipit, so there is nothing to export: copy its folder, or use --format "
            "timm or --format transformers for an ordinary checkpoint"
        )
    saving.check_output(out, overwrite)
    merged = load_merged(model, access)
    saving.save(merged, out, overwrite=overwrite, library=library, task=task, license=license)
    if as_json:
        show_json({"folder": str(out), "format": library, "tasks": [task] if task else merged.config.tasks})
    else:
        show(out)

"""`hf-zipit export`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json, License, Overwrite
from hf_zipit.commands.terminal import show, show_aside
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


@takes_access
def export(
    model: Annotated[str, typer.Argument(help="Merged model: Hub id or folder.")],
    access: Access,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the checkpoint, or the file: NAME.onnx or NAME.pt2.")
    ],
    format: Annotated[
        str,
        typer.Option(
            show_default=False,
            help="An ordinary checkpoint of the parents' library (plain, or timm or transformers), an onnx file, or a "
            "program of torch.export (torch). Default: what the name of the output says, .onnx or .pt2, or else plain.",
        ),
    ] = "",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="Export only this task; can be repeated for onnx and torch. Default: all tasks; in an ordinary "
            "checkpoint, one classifier over all their classes."
        ),
    ] = None,
    license: License = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a merge in a form that runs without hf-zipit.

    A full merge can become an ordinary timm or transformers checkpoint. Any merge can become one ONNX file, or one
    program of torch.export, with an output per task and batches of any size.
    """
    from hf_zipit.saving import export as graphs
    from hf_zipit.saving import save as saving
    from hf_zipit.saving.load import load_merged
    from hf_zipit.saving.plain import own_library

    format = format or next((name for name, suffix in graphs.SUFFIXES.items() if out.suffix == suffix), "plain")
    if format not in ("zipit", "plain", "timm", "transformers", *graphs.SUFFIXES):
        raise OptionError(
            f"unknown format '{format}'; formats: plain, timm, transformers, {', '.join(graphs.SUFFIXES)}"
        )
    if format == "zipit":
        raise OptionError(
            "a merge is already in the format zipit, so there is nothing to export: copy its folder, or use --format "
            "plain for an ordinary checkpoint, onnx or torch"
        )
    if format in graphs.SUFFIXES:
        graphs.check_target(out, format, overwrite)
        merged = load_merged(model, access)
        known = graphs.write_graph(merged, out, format, task or None, overwrite, license)
        outputs = {one["output"]: len(one["classes"]) for one in [*known["tasks"], *filter(None, [known.get("joint")])]}
        reads = f"{known['preprocessing']['input']} (B, {', '.join(map(str, known['preprocessing']['size']))})"
        says = ", ".join(f"{name} ({count} classes)" if count else name for name, count in outputs.items())
        show_aside(f"Input: {reads}, preprocessed images. Outputs: {says}")
        result = {"file": str(out), "format": format, "tasks": task or merged.config.tasks, "outputs": list(outputs)}
    else:
        if len(task or []) > 1:
            raise OptionError("an ordinary checkpoint has one task or all: use --task once, or --format onnx or torch")
        saving.check_output(out, overwrite)
        merged = load_merged(model, access)
        library = own_library(merged.config) if format == "plain" else format
        only = task[0] if task else None
        saving.save(merged, out, overwrite=overwrite, library=library, task=only, license=license)
        result = {"folder": str(out), "format": library, "tasks": task or merged.config.tasks}
    show_json("export", result) if as_json else show(out)

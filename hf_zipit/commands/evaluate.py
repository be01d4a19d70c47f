"""`hf-zipit eval`."""

from typing import Annotated

import typer

from hf_zipit.commands.options import BatchSize, Data, Device, Json, NumImages
from hf_zipit.commands.terminal import show, show_json, without_bars


def evaluate(
    model: Annotated[str, typer.Argument(help="A merged model: folder or Hub id.")],
    data: Data,
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="The source models, if they have moved; in task order.")
    ] = None,
    num_images: NumImages = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Accuracy of a merged model, its parents and their ensemble, with FLOPs and parameters."""
    from hf_zipit.evaluation import evaluate as run
    from hf_zipit.report import result_table
    from hf_zipit.saving import load, load_parents

    without_bars()
    merged = load(model)
    parents = load_parents(merged.config, model, parent)
    rows = run(merged, data, parents=parents, num_images=num_images, batch_size=batch_size, device=device)
    if as_json:
        show_json({"rows": [row.to_dict() for row in rows]})
    else:
        show(result_table(rows, merged.config.tasks))

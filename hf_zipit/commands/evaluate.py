"""`hf-zipit eval`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.access import Access
from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import BatchSize, Data, Device, Json, NumImages
from hf_zipit.commands.terminal import show, show_json, without_bars
from hf_zipit.errors import OptionError


@takes_access
def evaluate(
    model: Annotated[str, typer.Argument(help="A merged model: folder or Hub id.")],
    data: Data,
    access: Access,
    parent: Annotated[
        list[str] | None, typer.Option("--parent", help="The source models, if they have moved; in task order.")
    ] = None,
    num_images: NumImages = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    class_embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Compare outputs by cosine with these: safetensors with TASK (classes, D) and optionally TASK.ids."
        ),
    ] = None,
    average_heads: Annotated[
        bool, typer.Option("--average-heads", help="With class embeddings: compare the mean of all heads' outputs.")
    ] = False,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Put the results into the model's README.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Accuracy of a merged model, its parents and their ensemble, with FLOPs and parameters.

    Of models whose tasks have outputs of different kinds, each task's own metrics.
    """
    from hf_zipit.evaluation import evaluate as run
    from hf_zipit.modeling_zipit_model import ZipItModel
    from hf_zipit.protocols import read_class_embeddings
    from hf_zipit.report import result_table, task_table
    from hf_zipit.saving import load, load_parents
    from hf_zipit.task_evaluation import evaluate_tasks

    if average_heads and class_embeddings is None:
        raise OptionError("--average-heads needs --class-embeddings: logits of different classes cannot be averaged")
    embeddings = read_class_embeddings(class_embeddings, average_heads) if class_embeddings else None
    without_bars()
    merged = load(model, access)
    parents = load_parents(merged.config, model, parent, access)
    if isinstance(merged, ZipItModel):
        task_rows = evaluate_tasks(
            merged,
            data,
            parents=parents,
            num_images=num_images,
            batch_size=batch_size,
            device=device,
        )
        if as_json:
            show_json({"rows": [row.to_dict() for row in task_rows]})
        else:
            show(task_table(task_rows))
        return
    rows = run(
        merged,
        data,
        parents=parents,
        num_images=num_images,
        batch_size=batch_size,
        device=device,
        class_embeddings=embeddings,
    )
    if update_card:
        from hf_zipit.results import add_results

        add_results(model, merged.config, rows, data)
    if as_json:
        show_json({"rows": [row.to_dict() for row in rows]})
    else:
        show(result_table(rows, merged.config.tasks))

"""`hf-zipit eval`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import BatchSize, Data, Device, Json, LabelColumn, NumImages, SkipBadImages
from hf_zipit.commands.terminal import show_aside, show_table
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


@takes_access
def evaluate(
    model: Annotated[str, typer.Argument(help="Merged model: Hub id or folder.")],
    data: Data,
    access: Access,
    parent: Annotated[
        list[str] | None,
        typer.Option("--parent", help="A source model that has moved; one per model, in their order. Can be repeated."),
    ] = None,
    num_images: NumImages = None,
    skip_bad_images: SkipBadImages = 0,
    label_column: LabelColumn = None,
    batch_size: BatchSize = 64,
    device: Device = None,
    class_embeddings: Annotated[
        Path | None,
        typer.Option(
            help="Classify by the cosine between outputs and these class embeddings: a safetensors file with TASK "
            "(classes, D) and optionally TASK.ids."
        ),
    ] = None,
    average_heads: Annotated[
        bool, typer.Option("--average-heads", help="With --class-embeddings, use the mean of all heads' outputs.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure how long a forward pass takes, for 1 image and for 32.")
    ] = False,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Add the results to the model card, README.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Evaluate a merged model, its parents and their ensemble: accuracy, FLOPs and parameters.

    If the tasks have outputs of different kinds, each task is measured by its own metrics.
    """
    from hf_zipit.evaluation.card_results import add_results, card_of
    from hf_zipit.evaluation.evaluate import evaluate as run
    from hf_zipit.evaluation.evaluate import joint
    from hf_zipit.evaluation.protocols import read_class_embeddings
    from hf_zipit.evaluation.report import counted, result_table
    from hf_zipit.running import device_of
    from hf_zipit.saving.load import load_merged, load_parents

    if average_heads and class_embeddings is None:
        raise OptionError("--average-heads needs --class-embeddings: logits of different classes cannot be averaged")
    if device is not None:
        device_of(device, device)
    if update_card:
        card_of(model)
    embeddings = read_class_embeddings(class_embeddings, average_heads) if class_embeddings else None
    merged = load_merged(model, access)
    if not joint(merged) and (update_card or class_embeddings is not None):
        raise OptionError(f"{model} does not only hold classifiers: leave out --update-card and --class-embeddings")
    rows = run(
        merged,
        data,
        parents=load_parents(merged.config, model, parent, access),
        num_images=num_images,
        skip_bad_images=skip_bad_images,
        label_column=label_column,
        batch_size=batch_size,
        device=device,
        class_embeddings=embeddings,
        latency=latency,
    )
    if update_card:
        add_results(model, merged.config, rows, data)
    if as_json:
        show_json("eval", {"rows": [row.to_dict() for row in rows]})
    else:
        show_table("\n\n".join(filter(None, (result_table(rows, merged.config.tasks), counted(rows)))))
        if Path(model, "README.md").is_file() and joint(merged) and not update_card:
            show_aside("--update-card adds these results to the model card")

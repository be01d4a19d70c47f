"""`hf-zipit eval`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import BatchSize, Data, Device, Json, NumImages
from hf_zipit.commands.terminal import show, show_json
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access


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
    from hf_zipit.evaluation.card_results import add_results, card_of
    from hf_zipit.evaluation.classification import evaluate as by_accuracy
    from hf_zipit.evaluation.dense import evaluate_tasks
    from hf_zipit.evaluation.protocols import read_class_embeddings
    from hf_zipit.evaluation.report import result_table, task_table
    from hf_zipit.models.modeling_zipit_model import ZipItModel
    from hf_zipit.saving.load import load, load_parents

    if average_heads and class_embeddings is None:
        raise OptionError("--average-heads needs --class-embeddings: logits of different classes cannot be averaged")
    if update_card:
        card_of(model)
    embeddings = read_class_embeddings(class_embeddings, average_heads) if class_embeddings else None
    merged = load(model, access)
    if isinstance(merged, ZipItModel) and (update_card or class_embeddings is not None):
        raise OptionError(f"{model} has tasks of several kinds: no --update-card or --class-embeddings for it")
    options: dict[str, Any] = {"num_images": num_images, "batch_size": batch_size, "device": device}
    options["parents"] = load_parents(merged.config, model, parent, access)
    if isinstance(merged, ZipItModel):
        scores = evaluate_tasks(merged, data, **options)
        text, rows = task_table(scores), [row.to_dict() for row in scores]
    else:
        answers = by_accuracy(merged, data, class_embeddings=embeddings, **options)
        text, rows = result_table(answers, merged.config.tasks), [row.to_dict() for row in answers]
        if update_card:
            add_results(model, merged.config, answers, data)
    if as_json:
        show_json({"rows": rows})
    else:
        show(text)

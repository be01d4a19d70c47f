"""Arguments and options of several commands."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Hub id, folder, or timm architecture such as resnet50.")]
DATA = typer.Option(
    "--data",
    help="Images: Hub id, image folder or parquet file, optionally with :split. One for all tasks, or one per task. "
    "Can be repeated.",
)
Data = Annotated[list[str], DATA]
NumImages = Annotated[int | None, typer.Option(min=1, help="Images per data set. Default: all.")]
SkipBadImages = Annotated[
    int, typer.Option(help="Unreadable images to leave out per data set. They are named; more of them are an error.")
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column of the labels. Default: the one with the classes of the task."),
]
BatchSize = Annotated[int, typer.Option(min=1, show_default=False, help="Images per forward pass. Default: 64.")]
SpecFile = Annotated[
    Path | None,
    typer.Option("--spec", help="Spec file of the model. Default: the shipped one, or else a trace."),
]
Device = Annotated[str | None, typer.Option(help="Device, e.g. cpu or cuda:0. Default: chosen by accelerate.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge in the output folder.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        show_default=False,
        help="Output format: zipit, timm or transformers. The last two are ordinary checkpoints, of full merges. "
        "Default: zipit.",
    ),
]
License = Annotated[str | None, typer.Option(help="License of the result. Default: the one that all parents state.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Folder for the result. Default: the name in --push-to, or of the models."),
]
EvalData = Annotated[
    list[str] | None,
    typer.Option("--eval-data", help="Labelled images for results in the model card. Can be repeated."),
]
Require = Annotated[
    float | None,
    typer.Option(
        help="Least share of answers as the parent gives them, 0 to 1. It is for every task, on held-out images; if "
        "one has fewer, nothing is written, and the exit code is 1.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be made and its cost; write nothing.")]

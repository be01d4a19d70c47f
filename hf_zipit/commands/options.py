"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or a timm architecture such as resnet50.")]
Data = Annotated[
    list[str],
    typer.Option("--data", help="Hub id, image folder or parquet, with or without :split. One for all, or one each."),
]
NumImages = Annotated[int | None, typer.Option(help="Images per data set; default: all.")]
BatchSize = Annotated[int, typer.Option(help="Images per forward pass.")]
SpecFile = Annotated[Path | None, typer.Option("--spec", help="Use this spec file instead of the shipped one.")]
Device = Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda:0.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge in OUT.")]
Format = Annotated[
    str, typer.Option("--format", help="zipit; or timm or transformers: an ordinary checkpoint of a full merge.")
]
License = Annotated[str | None, typer.Option(help="Licence of the result; default: the one that all parents state.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

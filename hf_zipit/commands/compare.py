"""`hf-zipit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.access import Access
from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import BatchSize, Data, Device, Json, NumImages, SpecFile
from hf_zipit.commands.terminal import show, show_json, without_bars
from hf_zipit.errors import OptionError

Models = Annotated[
    list[str], typer.Argument(help="Two or more models: Hub ids, user/name or user/name@revision, or folders.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", help="Name of each task, in model order.")]
EvalData = Annotated[
    list[str] | None, typer.Option("--eval-data", help="Images for the evaluation; default: the data's test split.")
]


@takes_access
def compare(
    models: Models,
    data: Data,
    access: Access,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report; a comparison cut short goes on.")],
    methods: Annotated[
        str, typer.Option(help="all, with the controls, or some with commas between, as in zip,permute,random.")
    ] = "all",
    cuts: Annotated[str, typer.Option(help="Cuts with commas between; none merges all layers.")] = "none",
    calibrate: Annotated[
        str, typer.Option(help="Calibrations with commas between, as in batchnorm,refit; every method gets each.")
    ] = "batchnorm",
    alpha: Annotated[float, typer.Option(help="zip: penalty on merging many units into one.")] = 0.1,
    beta: Annotated[float, typer.Option(help="zip: share of merges that may happen within a model.")] = 0.8,
    balance: Annotated[
        str, typer.Option(help="mudsc: weight of weights against activations, 0 to 1, or auto.")
    ] = "0.5",
    compat: Annotated[bool, typer.Option("--compat", help="Follow the authors' code exactly.")] = False,
    eval_data: EvalData = None,
    eval_images: Annotated[int | None, typer.Option(help="Images per data set for the evaluation.")] = None,
    num_images: NumImages = None,
    batch_size: BatchSize = 32,
    task: Tasks = None,
    seed: Annotated[int, typer.Option(help="Chooses the images.")] = 0,
    device: Device = None,
    spec: SpecFile = None,
    cache: Annotated[bool, typer.Option(help="Keep statistics on disk for another merge of these models.")] = True,
    as_json: Json = False,
) -> None:
    """Many merges of the same models on the same statistics, beside controls, parents and ensemble.

    The result is a table, CSV, JSON and a picture.
    """
    from hf_zipit.balance import AUTO
    from hf_zipit.compare import Comparison, trials
    from hf_zipit.comparison import comparison_table, write_report
    from hf_zipit.matching.methods import Options
    from hf_zipit.merger import Merger
    from hf_zipit.sources import load

    without_bars()
    merger = Merger(
        [load(model, access=access) for model in models],
        data,
        num_images=num_images,
        batch_size=batch_size,
        tasks=task,
        seed=seed,
        device=device,
        spec=spec,
        cache=cache,
    )
    automatic = balance == AUTO
    options = Options(alpha=alpha, beta=beta, compat=compat, balance=0.5 if automatic else _number(balance))
    chosen = [None if cut == "none" else cut for cut in _listed(cuts)]
    wanted = trials(merger, _listed(methods), chosen, _listed(calibrate), options, automatic)
    comparison = Comparison(merger, out, eval_data or data, num_images=eval_images)
    results = comparison.run(wanted)
    if comparison.main:
        write_report(results, merger.tasks, out)
        if as_json:
            show_json(results)
        else:
            show(comparison_table(results, merger.tasks))


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"balance is '{text}': it must be a number between 0 and 1, or auto") from None

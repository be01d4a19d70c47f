"""`hf-zipit compare`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.options import Data, Json
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show, show_json
from hf_zipit.errors import OptionError
from hf_zipit.recipe import make_recipe
from hf_zipit.sources.access import Access

Models = Annotated[
    list[str], typer.Argument(help="Two or more models: Hub ids, user/name or user/name@revision, or folders.")
]
EvalData = Annotated[
    list[str] | None, typer.Option("--eval-data", help="Images for the evaluation; default: the data's test split.")
]
Sizes = Annotated[str, typer.Option(help="Merged units for each unit of one model, with commas between, as in 1,1.5.")]
Budgets = Annotated[
    str,
    typer.Option(help="Budgets of FLOPs with commas between, in forwards of one model: each chooses cut and widths."),
]
OF_MERGER = ("num_images", "batch_size", "tasks", "seed", "device", "spec", "cache")
VARIED = ("data", "method", "cut", "calibrate", "width", "flops_budget", "balance_data", "backbone")


@takes_access
@partial(takes_recipe, without=VARIED)
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
    widths: Sizes = "1",
    flops_budgets: Budgets = "",
    eval_data: EvalData = None,
    eval_images: Annotated[int | None, typer.Option(help="Images per data set for the evaluation.")] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Many merges of the same models on the same statistics, beside controls, parents and ensemble.

    The result is a table, CSV, JSON and a picture.
    """
    from hf_zipit.comparison.grid import trials
    from hf_zipit.comparison.report import comparison_table, write_report
    from hf_zipit.comparison.run import Comparison
    from hf_zipit.matching.methods import Options
    from hf_zipit.merging.balance import AUTO
    from hf_zipit.merging.merger import Merger
    from hf_zipit.sources.load import load

    settings = make_recipe(**given).arguments()
    opened = [load(model, access=access) for model in models]
    merger = Merger(opened, data, **{name: settings[name] for name in OF_MERGER})
    chosen = [None if cut == "none" else cut for cut in _listed(cuts)]
    wanted = trials(
        merger,
        _listed(methods),
        chosen,
        _listed(calibrate),
        Options.of(settings),
        automatic=settings["balance"] == AUTO,
        widths=_numbers("widths", widths),
        flops_budgets=_numbers("flops-budgets", flops_budgets),
    )
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


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in _listed(text)]
    except ValueError:
        raise OptionError(f"--{name} is '{text}': it must be numbers with commas between, as in 1,1.5") from None

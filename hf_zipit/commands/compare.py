"""`hf-zipit compare`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Data, Json
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show_table
from hf_zipit.errors import OptionError, ZipItError
from hf_zipit.sources.access import Access

Models = Annotated[
    list[str], typer.Argument(help="Two or more models: Hub ids (user/name or user/name@revision) or folders.")
]
EvalData = Annotated[
    list[str] | None,
    typer.Option("--eval-data", help="Images for the evaluation. Default: the test split of --data. Can be repeated."),
]
Methods = Annotated[
    str,
    typer.Option(
        show_default=False,
        help="Methods, separated by commas, e.g. auto,zip,random; all includes the controls. Default: all.",
    ),
]
Cuts = Annotated[
    str, typer.Option(show_default=False, help="Cuts, separated by commas; none merges all layers. Default: none.")
]
Calibrations = Annotated[
    str,
    typer.Option(
        show_default=False,
        help="Calibrations, separated by commas, e.g. auto,batchnorm,refit; each is run with every method. "
        "Default: batchnorm.",
    ),
]
Widths = Annotated[
    str,
    typer.Option(
        show_default=False, help="Merged units per unit of one model, separated by commas, e.g. 1,1.5. Default: 1."
    ),
]
Budgets = Annotated[
    str,
    typer.Option(
        show_default=False,
        help="Upper limits on FLOPs, separated by commas, as multiples of one parent's forward pass; each chooses cut "
        "and widths.",
    ),
]
VARIED = ("data", "method", "cut", "calibrate", "width", "flops_budget", "balance_data")
UNUSED = ("preset", "verdict", "parent_accuracy")  # every method is a row, and rows are measured


@takes_access
@partial(takes_recipe, without=(*VARIED, *UNUSED))
def compare(
    models: Models,
    data: Data,
    access: Access,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the report; an interrupted comparison resumes from it.")
    ],
    methods: Methods = "all",
    cuts: Cuts = "none",
    calibrate: Calibrations = "batchnorm",
    widths: Widths = "1",
    flops_budgets: Budgets = "",
    eval_data: EvalData = None,
    eval_images: Annotated[
        int | None, typer.Option(min=1, help="Images per data set for the evaluation. Default: all.")
    ] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Compare merges of the same models with each other, with controls, with the parents and with their ensemble.

    All merges use the same activation statistics. Prints a table and writes CSV, JSON and a plot. A merge that cannot
    be made is listed with the reason.
    """
    from hf_zipit.comparison.grid import Grid
    from hf_zipit.comparison.report import check_report, comparison_table, plain, write_report
    from hf_zipit.comparison.run import Comparison
    from hf_zipit.matching.options import Options
    from hf_zipit.merging.merger import Merger
    from hf_zipit.merging.provenance import check_count
    from hf_zipit.recipe import Recipe
    from hf_zipit.running import device_of
    from hf_zipit.sources.load import load_source

    matching = {name: given.pop(name) for name in list(given) if name in Options.model_fields}
    recipe = Recipe(**given, verdict=False)
    grid = Grid(
        methods=_listed(methods),
        cuts=_listed(cuts),
        calibrations=_listed(calibrate),
        widths=_numbers("widths", widths),
        flops_budgets=_numbers("flops-budgets", flops_budgets),
        options=matching,
    )
    grid.check()
    check_count(len(models))
    if recipe.device is not None:
        device_of(recipe.device, recipe.device)
    check_report(out)
    sources = [load_source(model, access=access) for model in models]
    merger = Merger(sources, data, recipe, token=access.token, access=access)
    wanted = grid.recipes(merger)
    comparison = Comparison(merger, out, eval_data or data, targets=eval_data, num_images=eval_images)
    results = comparison.run(wanted)
    if comparison.main:
        write_report(results, merger.tasks, out)
        if as_json:
            show_json("compare", {"rows": [plain(row) for row in results]})
        else:
            show_table(comparison_table(results, merger.tasks))
        failed = [row for row in results if row.error]
        if len(failed) == len(wanted):
            raise ZipItError(f"none of the {len(wanted)} merges could be made; the first: {failed[0].error}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in _listed(text)]
    except ValueError:
        raise OptionError(f"--{name} is '{text}': give numbers separated by commas, e.g. 1,1.5") from None

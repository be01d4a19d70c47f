"""`hf-zipit compare`."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import DATA, Json
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show_aside, show_table
from hf_zipit.comparison.papers import PAPERS, PREFIX
from hf_zipit.errors import OptionError, ZipItError
from hf_zipit.sources.access import Access

if TYPE_CHECKING:
    from hf_zipit.comparison.grid import Grid
    from hf_zipit.comparison.pairs import Pair
    from hf_zipit.evaluation.results import Result
    from hf_zipit.recipe import Recipe

MODELS = typer.Argument(help="Two or more models: Hub ids (user/name or user/name@revision) or folders.")
Models = Annotated[list[str], MODELS]
EvalData = Annotated[
    list[str] | None,
    typer.Option("--eval-data", help="Images for the evaluation. Default: the test split of --data. Can be repeated."),
]
Methods = Annotated[
    str,
    typer.Option(
        show_default=False,
        help="Methods, separated by commas, e.g. auto,zip,random; all includes the controls. The rows of a paper's "
        f"table, with its settings and the controls, are {', '.join(PREFIX + name for name in PAPERS)}. Default: all.",
    ),
]
Cuts = Annotated[
    str, typer.Option(show_default=False, help="Cuts, separated by commas; none merges all layers. Default: none.")
]
Calibrations = Annotated[
    str,
    typer.Option(
        show_default=False,
        help="Calibrations, separated by commas, e.g. auto,batchnorm,refit; each is run with every method. The rows of "
        "a paper have their own. Default: batchnorm, and auto for the method auto.",
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
Pairs = Annotated[
    Path | None,
    typer.Option(
        "--pairs",
        help="File that names several pairs of models, in place of MODELS and --data. It is a YAML or JSON list of "
        "entries with the keys models, data, eval_data and name. Each pair has its own folder in the report; the table "
        "has the mean over the pairs and the standard deviation.",
    ),
]
VARIED = ("data", "method", "cut", "calibrate", "width", "flops_budget", "balance_data")
UNUSED = ("preset", "verdict", "parent_accuracy")  # every method is a row, and rows are measured


@takes_access
@partial(takes_recipe, without=(*VARIED, *UNUSED))
def compare(
    access: Access,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder for the report; an interrupted comparison resumes from it.")
    ],
    models: Annotated[list[str] | None, MODELS] = None,
    data: Annotated[list[str] | None, DATA] = None,
    pairs: Pairs = None,
    methods: Methods = "all",
    cuts: Cuts = "none",
    calibrate: Calibrations = "",
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

    All merges use the same activation statistics. Prints a table and writes it as CSV, JSON, Markdown and LaTeX, with a
    plot. A merge that cannot be made is listed with the reason.
    """
    from hf_zipit.comparison.grid import Grid
    from hf_zipit.comparison.pairs import Pair, read_pairs
    from hf_zipit.comparison.report import check_report
    from hf_zipit.matching.options import Options
    from hf_zipit.merging.provenance import check_count
    from hf_zipit.recipe import Recipe
    from hf_zipit.running import device_of

    matching = {name: given.pop(name) for name in list(given) if name in Options.model_fields}
    recipe = Recipe(**given, verdict=False)
    grid = Grid(
        methods=_listed(methods),
        cuts=_listed(cuts),
        calibrations=_listed(calibrate) if calibrate else None,
        widths=_numbers("widths", widths),
        flops_budgets=_numbers("flops-budgets", flops_budgets),
        options=matching,
    )
    grid.check()
    if bool(pairs) == bool(models or data or eval_data):
        raise OptionError("give MODELS and --data, or --pairs with a file that names them")
    if pairs is None:
        _check_models(models or [])
        check_count(len(models or ()))
        if not data:
            raise OptionError("no --data: give a Hub id, an image folder or a parquet file")
    compared = read_pairs(pairs) if pairs else [Pair(models=models or [], data=data or [], eval_data=eval_data)]
    if recipe.device is not None:
        device_of(recipe.device, recipe.device)
    check_report(out, [pair.name for pair in compared] if pairs else ())
    compare_one = partial(_compared, grid=grid, recipe=recipe, images=eval_images, access=access)
    if pairs is None:
        _show(*compare_one(compared[0], out), as_json=as_json)
    else:
        _compare_pairs(compared, out, compare_one, access, as_json)


def _check_models(models: Sequence[str]) -> None:
    """Refuse names of methods that stand among the models."""
    from hf_zipit.matching.registry import names

    methods = names()
    for name in models:
        if name in methods and not Path(name).exists():
            raise OptionError(
                f"'{name}' is a method, not a model: separate methods by commas, as in --methods zip,{name}"
            )


def _compared(
    pair: "Pair", out: Path, grid: "Grid", recipe: "Recipe", images: int | None, access: Access
) -> tuple[list["Result"], list[str], bool]:
    """Compare the merges of one pair, and write the report.

    Returns:
        The results, the names of the tasks, and whether this is the main process.
    """
    from hf_zipit.comparison.report import write_report
    from hf_zipit.comparison.run import Comparison
    from hf_zipit.merging.merger import Merger
    from hf_zipit.sources.load import load_source

    sources = [load_source(model, access=access) for model in pair.models]
    merger = Merger(sources, pair.data, recipe, token=access.token, access=access)
    wanted = grid.recipes(merger)
    comparison = Comparison(merger, out, pair.eval_data or pair.data, targets=pair.eval_data, num_images=images)
    results = comparison.run(wanted)
    if comparison.main:
        write_report(results, merger.tasks, out)
    return results, merger.tasks, comparison.main


def _compare_pairs(
    pairs: list["Pair"],
    out: Path,
    compare_one: Callable[..., tuple[list["Result"], list[str], bool]],
    access: Access,
    as_json: bool,
) -> None:
    """Compare the merges of every pair in a folder of its own, and report their mean."""
    from hf_zipit.comparison.pairs import mean_results
    from hf_zipit.comparison.report import plain, write_report
    from hf_zipit.sources.load import load_source

    for pair in pairs:
        for model in pair.models:  # one that cannot be loaded is found before the work on the others
            load_source(model, access=access)
    reports = []
    for pair in pairs:
        results, _, main = compare_one(pair, out / pair.name)
        reports.append(results)
    names = [pair.name for pair in pairs]
    means = mean_results(reports, names)
    if main:
        write_report(means, [], out)
    each = [{"name": name, "rows": [plain(row) for row in rows]} for name, rows in zip(names, reports, strict=True)]
    _show(means, [], main, as_json=as_json, pairs=each)


def _show(results: list["Result"], tasks: list[str], main: bool, *, as_json: bool, **more: Any) -> None:
    """Print the results in the main process. If no merge could be made, that is an error."""
    from hf_zipit.comparison.columns import legend
    from hf_zipit.comparison.report import comparison_table, plain

    if not main:
        return
    if as_json:
        show_json("compare", {"rows": [plain(row) for row in results], **more})
    else:
        show_table(comparison_table(results, tasks))
        show_aside(f"\n{legend(results)}")
    merges = [row for row in results if row.merged]
    if all(row.error for row in merges):
        raise ZipItError(f"none of the {len(merges)} merges could be made; the first: {merges[0].error}")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in _listed(text)]
    except ValueError:
        raise OptionError(f"--{name} is '{text}': give numbers separated by commas, e.g. 1,1.5") from None

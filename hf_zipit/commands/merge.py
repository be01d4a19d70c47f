"""`hf-zipit merge`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.options import Format, Json, License, Overwrite
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show, show_json, without_bars
from hf_zipit.errors import OptionError
from hf_zipit.recipe import SUFFIXES, Recipe, make_recipe, read_recipe


@takes_recipe
def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: Hub ids, user/name or user/name@revision, or folders; or a recipe.yml."),
    ],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the merged model.")] = None,
    overwrite: Overwrite = False,
    library: Format = "zipit",
    license: License = None,
    eval_data: Annotated[
        list[str] | None, typer.Option("--eval-data", help="Labelled images: put accuracies into the card.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be merged and what it costs; write nothing.")
    ] = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Merge models of one architecture into one model with a head per task.

    Flags beside a recipe file take the place of what the file says.
    """
    recipe = _recipe(models, given)
    if dry_run:
        _plan(recipe, as_json)
        return
    if out is None:
        raise OptionError("name a folder for the merged model with --out")
    if eval_data and library != "zipit":
        raise OptionError("--eval-data needs --format zipit: evaluate that, then write others with `hf-zipit export`")
    from hf_zipit import saving
    from hf_zipit.batching import make_accelerator
    from hf_zipit.from_recipe import merge_recipe

    saving.check_output(out, overwrite)
    without_bars()
    merged = merge_recipe(recipe)
    if not make_accelerator().is_main_process:
        return
    saving.save(merged, out, overwrite=overwrite, library=library, license=license)
    if eval_data:
        _evaluate(merged, out, eval_data, recipe)
    if as_json:
        about = merged.config.zipit or {}
        show_json({"folder": str(out), "tasks": merged.config.tasks, "cut": merged.config.cut, **about})
    else:
        show(out)


def _recipe(models: list[str], given: dict[str, Any]) -> Recipe:
    if not models[0].endswith(SUFFIXES):
        return make_recipe(sources=models, **given)
    return read_recipe(models[0], **({"sources": models[1:]} if models[1:] else {}), **given)


def _plan(recipe: Recipe, as_json: bool) -> None:
    from hf_zipit.planning import plan_merge, plan_text

    plan = plan_merge(recipe)
    show_json(plan.to_dict()) if as_json else show(plan_text(plan))


def _evaluate(merged: Any, out: Path, data: list[str], recipe: Recipe) -> None:
    from hf_zipit.evaluation import evaluate
    from hf_zipit.results import add_results
    from hf_zipit.saving import load_parents

    rows = evaluate(merged, data, parents=load_parents(merged.config, out), device=recipe.device)
    add_results(out, merged.config, rows, data)

"""`hf-zipit merge`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.options import Json
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show, show_json, without_bars
from hf_zipit.recipe import SUFFIXES, Recipe, make_recipe, read_recipe


@takes_recipe
def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: Hub ids, user/name or user/name@revision, or folders; or a recipe.yml."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the merged model.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier merge in OUT.")] = False,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Merge models of one architecture into one model with a head per task.

    Flags beside a recipe file take the place of what the file says.
    """
    from hf_zipit import saving
    from hf_zipit.batching import make_accelerator
    from hf_zipit.from_recipe import merge_recipe

    recipe = _recipe(models, given)
    saving.check_output(out, overwrite)
    without_bars()
    merged = merge_recipe(recipe)
    if make_accelerator().is_main_process:
        saving.save(merged, out, overwrite=overwrite)
        if as_json:
            about = merged.config.zipit or {}
            show_json({"folder": str(out), "tasks": merged.config.tasks, "cut": merged.config.cut, **about})
        else:
            show(out)


def _recipe(models: list[str], given: dict[str, Any]) -> Recipe:
    if not models[0].endswith(SUFFIXES):
        return make_recipe(sources=models, **given)
    return read_recipe(models[0], **({"sources": models[1:]} if models[1:] else {}), **given)

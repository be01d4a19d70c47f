"""`hf-zipit recipe`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json
from hf_zipit.commands.terminal import show
from hf_zipit.errors import OptionError
from hf_zipit.recipe import Recipe, read_recipe


def recipe(
    file: Annotated[Path | None, typer.Argument(help="Recipe file to check.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe file and show it with all defaults, or print the JSON schema of recipes."""
    import yaml

    if schema == (file is not None):
        raise OptionError("give either a recipe file or --schema")
    if file is None:
        show(json.dumps(Recipe.model_json_schema(), indent=2))
        return
    values = read_recipe(file).model_dump(mode="json")
    if as_json:
        show_json("recipe", {"recipe": values})
    else:
        show(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())

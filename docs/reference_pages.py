"""The pages of the reference that are written from the code: all commands and flags, and recipes."""

import json
import re
from typing import Any

import typer.main
from tables import summary, table

from hf_zipit.cli import app
from hf_zipit.recipe import Recipe

RECIPES = """# Recipes

A recipe is a YAML file with everything that determines a merge. `hf-zipit merge recipe.yml -o OUT` and
`hf_zipit.merge_recipe` read it; every saved merge holds its own, `zipit_config.yml`. The keys are the
[options](../options.md) and those below; unknown keys are errors. `hf-zipit recipe FILE` checks a recipe and shows it
in full.

{keys}

## JSON schema

Printed by `hf-zipit recipe --schema`, for editors. This page is written by `make docs`.

```json
{schema}
```
"""


def commands() -> str:
    """Every command with its arguments and flags, from the command line itself."""
    parts = [
        "# Commands",
        "`hf-zipit COMMAND --help-all` prints the same in a terminal, with examples. This page is "
        "written by `make docs`.",
    ]
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        parts += [f"## `hf-zipit {name}`", escaped(command.help), table(["", "meaning"], map(flag, command.params))]
    return "\n\n".join(parts) + "\n"


def flag(parameter: Any) -> tuple[str, str]:
    """The row of a flag or an argument."""
    if parameter.param_type_name == "argument":
        names = [parameter.name.upper()]
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
    meaning = escaped(summary(parameter.help or ""))
    return ", ".join(f"`{name}`" for name in names), f"{meaning} *Required.*" if parameter.required else meaning


def escaped(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([*_<\[])", r"\\\1", text)


def recipes() -> str:
    """The keys of a recipe that are no options of a merge, and the JSON schema."""
    fields = {name: Recipe.model_fields[name] for name in ("sources", "generator")}
    keys = table(
        ["key", "meaning"], [[f"`{name}`", summary(field.description or "")] for name, field in fields.items()]
    )
    return RECIPES.format(keys=keys, schema=json.dumps(Recipe.model_json_schema(), indent=2))

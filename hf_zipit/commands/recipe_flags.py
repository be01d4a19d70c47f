"""The keys of a recipe as flags of a command: same names, same meanings, defaults taken from the recipe."""

import inspect
import typing
from collections.abc import Callable, Collection
from types import UnionType
from typing import Annotated, Any

import typer

from hf_zipit.recipe import Recipe

NO_FLAG = frozenset({"sources", "generator"})  # sources are the command's arguments
SINGULAR = {"tasks": "task"}  # repeated flags are named for one value
Command = Callable[..., None]


def takes_recipe(command: Command, without: Collection[str] = ()) -> Command:
    """Give a command whose last parameter is `**given` a flag for every key of a recipe, but for those `without`.

    A flag that is not used is not in `given`, so that it leaves what a recipe file says as it is.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
    flags = [_flag(name) for name in Recipe.model_fields if name not in NO_FLAG.union(without)]

    def run(**values: Any) -> None:
        unset = [f.name for f in flags if values[f.name] is None or values[f.name] == []]
        command(**{name: value for name, value in values.items() if name not in unset})

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
    return run


def _flag(name: str) -> inspect.Parameter:
    field = Recipe.model_fields[name]
    kind, spelled = _kind(field.annotation), SINGULAR.get(name, name).replace("_", "-")
    names = f"--{spelled}/--no-{spelled}" if kind is bool else f"--{spelled}"
    default = "" if field.default is None or kind is bool else f" Default: {field.default}."
    option = typer.Option(names, help=f"{field.description}{default}", show_default=False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kind(annotation: Any) -> Any:
    """The type of a flag: a list if the key may have one, else the type that is not None."""
    union = typing.get_origin(annotation) in (UnionType, typing.Union)
    kinds = typing.get_args(annotation) if union else (annotation,)
    if any(typing.get_origin(kind) is typing.Literal for kind in kinds):  # a number or a word
        return str
    lists = [kind for kind in kinds if typing.get_origin(kind) is list]
    return lists[0] if lists else kinds[0]

"""The keys of a recipe as flags of a command, with the descriptions and defaults of the recipe."""

import inspect
import typing
from collections.abc import Callable, Collection
from types import UnionType
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from hf_zipit.recipe import Recipe

NO_FLAG = frozenset({"sources", "generator"})  # the sources are arguments, and the generator is no option
SINGULAR = {"tasks": "task"}  # a flag that is repeated takes one value
Command = Callable[..., None]


def takes_recipe(command: Command, without: Collection[str] = ()) -> Command:
    """Give a command a flag for every key of a recipe.

    Args:
        command: A command whose last parameter is `**given`. It gets only the flags that the user passes, so that the
            others do not override a recipe file.
        without: Keys that get no flag.
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
    kind = _kind(field.annotation)
    spelled = SINGULAR.get(name, name).replace("_", "-")
    names = f"--{spelled}/--no-{spelled}" if kind is bool else f"--{spelled}"
    option = typer.Option(names, help=_help(field, kind), show_default=False)
    annotation = Annotated[kind | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: FieldInfo, kind: Any) -> str:
    """The description of a key, whether its flag can be repeated, and its default."""
    description = field.description or ""
    notes = ["Can be repeated."] if typing.get_origin(kind) is list else []
    if field.default is not None:
        switch = "on" if field.default else "off"
        notes.append(f"Default: {switch if kind is bool else field.default}.")
    separator = "\n\n" if "\n\n" in description else " "
    return separator.join([description, *notes])


def _kind(annotation: Any) -> Any:
    """The type of a flag: a list if the key may have one, otherwise the first type, or text for a choice of words."""
    union = typing.get_origin(annotation) in (UnionType, typing.Union)
    kinds = [_bare(kind) for kind in (typing.get_args(annotation) if union else (annotation,))]
    lists = [kind for kind in kinds if typing.get_origin(kind) is list]
    if any(typing.get_origin(kind) is typing.Literal for kind in kinds):  # numbers or a word, which the recipe checks
        return list[str] if lists else str
    return lists[0] if lists else kinds[0]


def _bare(kind: Any) -> Any:
    """A type without its range, which the recipe checks."""
    if typing.get_origin(kind) is Annotated:
        return typing.get_args(kind)[0]
    if typing.get_origin(kind) is list:
        return list[_bare(typing.get_args(kind)[0])]  # type: ignore[misc]
    return kind

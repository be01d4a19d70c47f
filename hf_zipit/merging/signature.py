"""The options of a recipe in the signature and the docstring of a function."""

import inspect
import textwrap
from collections.abc import Callable, Collection
from functools import wraps
from typing import Any, TypeVar, cast

from hf_zipit.recipe import Recipe

NO_OPTIONS = frozenset({"sources", "data", "generator"})  # the inputs, and the program that wrote the recipe
WIDTH = 116  # of generated docstrings, in characters
_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_options(function: _Function, without: Collection[str] = ()) -> _Function:
    """List the options of a recipe in the signature and the docstring of a function that takes `**options`.

    `{options}` in the `Args` section of the docstring is replaced by their descriptions. Any other keyword is refused
    with a TypeError, as Python does.

    Args:
        function: The function.
        without: Options that it does not take.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    left_out = NO_OPTIONS.union(signature.parameters, without)
    fields = {name: field for name, field in Recipe.model_fields.items() if name not in left_out}
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in fields.items()
    ]
    before = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    after = [p for p in own if p.kind is p.KEYWORD_ONLY]
    known = signature.replace(parameters=[*before, *keywords, *after])

    @wraps(function)
    def checked(*args: Any, **given: Any) -> Any:
        unknown = sorted(given.keys() - known.parameters)
        if unknown:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument '{unknown[0]}'")
        return function(*args, **given)

    checked.__signature__ = known  # type: ignore[attr-defined]
    entries = "\n".join(_docstring_entry(name, field.description or "") for name, field in fields.items())
    checked.__doc__ = (function.__doc__ or "").replace("        {options}", entries)
    return cast("_Function", checked)


def _docstring_entry(name: str, description: str) -> str:
    """An entry of an `Args` section; the paragraphs of the description after the first are indented below it."""
    first, *others = description.split("\n\n")
    lines = [textwrap.fill(f"{name}: {first}", WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12)]
    lines += [textwrap.fill(text, WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 14) for text in others]
    return "\n".join(lines)

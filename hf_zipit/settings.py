"""User options: types and ranges are checked in one place, and error messages name the key and the value."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from hf_zipit.errors import OptionError


class Settings(BaseModel):
    """Base class of options. Each field defines its name, type, default, range and description in one place.

    Raises:
        OptionError: an unknown key, or a value of the wrong type or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: Any) -> Any:
        """YAML reads `off` as a truth value, and a truth value would pass for a number."""
        for name, value in values.items():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise OptionError(f"{name} is {value}: it is not a truth value")
        return values

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self)) from None


def _refusal(error: ValidationError, cls: type[BaseModel]) -> OptionError:
    """The `OptionError` for a validation error: about an unknown key if there is one, else about the first error."""
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    raised = first.get("ctx", {}).get("error")
    if isinstance(raised, OptionError):  # raised by a field's own validator
        return raised
    typo = first["type"] == "extra_forbidden"
    key = _key(first["loc"], cls, typo)
    if typo:
        known = _fields(cls, nested=len(first["loc"]) > 1)
        near = difflib.get_close_matches(str(first["loc"][-1]), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"keys: {', '.join(known)}"
        return OptionError(f"unknown key '{key}'; {hint}")
    value = first["input"]
    shown = f"{value:g}" if isinstance(value, int | float) else repr(value)
    limits = _limits(cls, str(first["loc"][0]))
    outside = first["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
    return OptionError(f"{key} is {shown}: {limits if outside and limits else first['msg'].lower()}")


def _key(location: tuple[int | str, ...], cls: type[BaseModel], typo: bool) -> str:
    """The dotted path of a value, as in `sources.0.sha`, without the union members that pydantic tried."""
    names = {*_fields(cls), *_fields(cls, nested=True), *(location[-1:] if typo else ())}
    return ".".join(str(part) for part in location if isinstance(part, int) or part in names)


def _fields(cls: type[BaseModel], nested: bool = False) -> list[str]:
    """The field names of a pydantic model, or those of the models nested in its fields."""
    if not nested:
        return list(cls.model_fields)
    inner = [model for field in cls.model_fields.values() for model in _models(field.annotation)]
    return [name for model in inner for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def _limits(cls: type[BaseModel], name: str) -> str:
    """The range of a field in words; empty if it has none."""
    marks = {key: value for mark in cls.model_fields[name].metadata for key, value in _bounds(mark).items()}
    if "ge" in marks and "le" in marks:
        return f"it must lie between {marks['ge']:g} and {marks['le']:g}"
    if marks.get("gt") == 0:
        return "it must be positive"
    return f"it must be at least {marks['ge']:g}" if "ge" in marks else ""


def _bounds(mark: Any) -> dict[str, float]:
    """The bounds in one piece of a field's metadata."""
    return {key: getattr(mark, key) for key in ("ge", "gt", "le", "lt") if hasattr(mark, key)}

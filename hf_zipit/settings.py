"""User options: types and ranges are checked in one place, and error messages name the key and the value."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hf_zipit.errors import OptionError
from hf_zipit.files.documents import is_plain

KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
}  # by the type of a pydantic error
LONGEST = 80  # characters of a value in a message
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base class of options. Each field defines its name, type, default, range and description in one place.

    Raises:
        OptionError: an unknown key, or a value of the wrong type or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_values(cls, values: Any) -> Any:
        """Refuse what would pass for another value: YAML reads `off` as a truth value, which counts as a number."""
        for name, value in values.items():
            known = cls.model_fields.get(name)
            for part in _leaves(value):
                if isinstance(part, bool) and known is not None and known.annotation is not bool:
                    raise OptionError(f"{name} is {shown(value)}: it is not a truth value")
                if isinstance(part, str) and not is_plain(part):
                    raise OptionError(f"{name} is {shown(value)}: it holds control characters, or is not valid text")
        return values

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self)) from None


def _leaves(value: Any) -> Iterator[Any]:
    """The values in a value: of lists and mappings, what they hold."""
    if isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def shown(value: Any) -> str:
    """A value for a message: numbers as people write them, everything else as Python does, and not too long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _refusal(error: ValidationError, cls: type[BaseModel]) -> OptionError:
    """The `OptionError` for a validation error: about an unknown key if there is one, else about the first error."""
    found = error.errors(include_url=False)
    first = min(found, key=lambda e: e["type"] != "extra_forbidden")
    if first["type"] != "extra_forbidden":  # of what one value may be, that which it resembles most
        first = max(
            (e for e in found if e["loc"][:1] == first["loc"][:1]), key=lambda e: len(_key(e["loc"], cls, False))
        )
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
    outside = first["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
    marks = _range(cls, key) or first.get("ctx", {})  # of one entry of a list, only the bound is known that it breaks
    limits = _limits(marks) if outside else ""
    mine = [other for other in found if _key(other["loc"], cls, typo) == key]  # of all that it may be
    return OptionError(f"{key} is {shown(first['input'])}: {limits or _wanted(mine)}")


def _wanted(errors: Sequence[Any]) -> str:
    """What a value must be, by the errors of all that it may be."""
    kinds = dict.fromkeys(_kind(error) for error in errors)
    if None in kinds:
        return ", or ".join(dict.fromkeys(error["msg"].lower() for error in errors))
    *some, last = (str(kind) for kind in kinds)
    return f"it must be {', '.join(some)} or {last}" if some else f"it must be {last}"


def _kind(error: Any) -> str | None:
    """What a validation error asks for; `None` if it has no words of ours."""
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"])
    return KINDS.get(error["type"])


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


def _limits(marks: Mapping[str, Any]) -> str:
    """A range in words; empty if there is none."""
    if "ge" in marks and "le" in marks:
        return f"it must lie between {marks['ge']} and {marks['le']}"
    if marks.get("gt") == 0:
        return "it must be positive"
    if "le" in marks:
        return f"it must be at most {marks['le']}"
    return f"it must be at least {marks['ge']}" if "ge" in marks else ""


def _range(cls: type[BaseModel], name: str) -> dict[str, Any]:
    """The bounds of a field; empty if it has none."""
    metadata = cls.model_fields[name].metadata if name in cls.model_fields else ()
    return {key: value for mark in metadata for key, value in _bounds(mark).items()}


def _bounds(mark: Any) -> dict[str, float]:
    """The bounds in one piece of a field's metadata."""
    return {key: getattr(mark, key) for key in ("ge", "gt", "le", "lt") if hasattr(mark, key)}

"""Class names in configs: as many as the classifier has outputs, by every id from 0."""

from collections.abc import Mapping
from typing import Any

from hf_zipit.errors import SourceError


def class_names(given: Any, outputs: int, place: str) -> list[str]:
    """The names of all classes in the order of their ids; `LABEL_0` and so on if none are given.

    Numbers become text. A name may occur twice, as two classes of ImageNet are called crane.

    Args:
        given: a list of names, or names by id; ids may be text. `None` or empty if there are none.
        outputs: of the classifier.
        place: the file and the field, for the message.

    Raises:
        SourceError: the names are more or fewer than the outputs, an id is missing, or a name is no text.

    >>> class_names({"1": "dog", "0": "cat"}, 2, "config.json: id2label")
    ['cat', 'dog']
    """
    if not given:
        return [f"LABEL_{i}" for i in range(outputs)]
    if not isinstance(given, list | tuple | Mapping):
        raise SourceError(f"{place} is {given!r}, not a list or a mapping of class names")
    named = _by_id(given, place) if isinstance(given, Mapping) else dict(enumerate(given))
    if len(named) != outputs:
        raise SourceError(
            f"{place} has {len(named)} names, but the classifier has {outputs} outputs; write one name for each, or "
            f"remove the field to call them LABEL_0 to LABEL_{outputs - 1}"
        )
    missing = [i for i in range(outputs) if i not in named]
    if missing:
        raise SourceError(
            f"{place} has the ids {_few(sorted(named))}, but the outputs are numbered from 0 to {outputs - 1}: "
            f"{missing[0]} has no name; number the names like the outputs of the classifier"
        )
    return [_name(named[i], i, place) for i in range(outputs)]


def _by_id(given: Mapping[Any, Any], place: str) -> dict[int, Any]:
    named = {}
    for key, name in given.items():
        try:
            number = int(key)
        except (TypeError, ValueError):
            raise SourceError(
                f"{place} has the id {key!r}; ids are the numbers of the outputs, from 0, and the names are its values"
            ) from None
        if number in named:
            raise SourceError(f"{place} names the id {number} twice; write one name for each output")
        named[number] = name
    return named


def _few(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:4])) + (", ..." if len(ids) > 4 else "")


def _name(value: Any, number: int, place: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise SourceError(f"{place} calls class {number} {value!r}; a name is a text that is not empty, or a number")

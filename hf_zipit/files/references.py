"""References in a file to models and data sets: Hub ids, or paths relative to the file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError
from hf_zipit.files.documents import is_plain


def located(
    values: Mapping[str, Any], base: Path, *, lists: Iterable[str], paths: Iterable[str], single: Iterable[str] = ()
) -> dict[str, Any]:
    """The values of a file with relative paths made absolute; what is malformed is left for validation.

    Args:
        values: the values of the file.
        base: the absolute path of its folder.
        lists: keys with one reference, or a list of references or of mappings with a `path`.
        paths: keys with a path.
        single: keys with one reference that is not to become a list.

    Raises:
        OptionError: a reference looks like a Hub id, but would be taken for a path in the current folder.
    """
    found = dict(values)
    for name in lists:
        given = found.get(name)
        if isinstance(given, str):
            found[name] = [_placed(given, base)]
        elif isinstance(given, list):
            found[name] = [_placed_entry(entry, base) for entry in given]
    for name in single:
        if name in found:
            found[name] = _placed_entry(found[name], base)
    for name in paths:
        if isinstance(found.get(name), str) and found[name].strip():
            found[name] = str(base / Path(found[name]).expanduser())
    return found


def _placed_entry(entry: Any, base: Path) -> Any:
    """A model or data set by name, or a model as a merge records it."""
    if isinstance(entry, str):
        return _placed(entry, base)
    if isinstance(entry, dict) and isinstance(entry.get("path"), str):
        return {**entry, "path": str(base / entry["path"])}
    return entry


def _placed(ref: str, base: Path) -> str:
    """A reference to a model or data set; a relative path is joined to the base folder.

    It is a Hub id if it looks like one (`user/name`) and there is no such path in the base folder; otherwise a path.

    Raises:
        OptionError: It is a Hub id, but there is such a path in the current folder, which would be taken for it.
    """
    if not is_plain(ref) or not ref.strip():
        return ref  # which validation refuses
    path = ref if (base / ref).exists() or ":" not in ref else ref.rpartition(":")[0]
    hub_id = path.partition("@")[0].count("/") == 1 and not ref.startswith((".", "~", "/")) and not path.endswith("/")
    if not hub_id or (base / path).exists():
        return str(base / Path(ref).expanduser())
    if Path(path).exists():
        raise OptionError(
            f"'{path}' is not beside the recipe, but in the current folder: write the absolute path if you mean that "
            "one, or run from another folder if you mean the Hub"
        )
    return ref

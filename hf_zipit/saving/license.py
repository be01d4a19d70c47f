"""The licence of a merged model, from the cards of its parents."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from hf_zipit.errors import SourceError

KEYS = ("license", "license_name", "license_link")


def licence_of(folder: Path | None) -> dict[str, str]:
    """What a model's README.md says about its licence: `license`, and for `other` its name and link; empty if nothing.

    >>> licence_of(Path("user/pets"))  # doctest: +SKIP
    {'license': 'mit'}
    """
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError):  # a card that cannot be read says nothing
        return {}
    return {key: str(data[key]) for key in KEYS if data.get(key)}


def agreed_licence(sources: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The licence that all parents state; empty if they state none, or different ones."""
    try:
        return common_licence(sources)
    except SourceError:
        return {}


def common_licence(sources: Iterable[Mapping[str, Any]], given: str | None = None) -> dict[str, str]:
    """The licence of a merge: the one given, else the one that all parents share; empty if one of them states none.

    Args:
        sources: per parent its `license` (and `license_name`, `license_link`) and its `id` or `folder`.
        given: what the user chose.

    Raises:
        SourceError: the parents have different licences, and none was given.
    """
    if given is not None:
        return {"license": given}
    parents = [(str(source.get("id") or source.get("folder") or "a model in memory"), source) for source in sources]
    found = {name: {key: source[key] for key in KEYS if source.get(key)} for name, source in parents}
    stated = [licence for licence in found.values() if licence]
    if any(licence != stated[0] for licence in stated):
        shown = ", ".join(
            f"{n}: {v.get('license_name') or v.get('license') or 'none stated'}" for n, v in found.items()
        )
        raise SourceError(f"the parents have different licences ({shown}): choose one that respects all with --license")
    return stated[0] if stated and len(stated) == len(found) else {}

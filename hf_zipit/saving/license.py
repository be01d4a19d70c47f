"""The license of a merged model, from the model cards of its parents."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from hf_zipit.errors import SourceError

KEYS = ("license", "license_name", "license_link")


def license_of(folder: Path | None) -> dict[str, str]:
    """The license metadata in a model's README.md: `license`, `license_name` and `license_link`, if present.

    >>> license_of(Path("user/pets"))  # doctest: +SKIP
    {'license': 'mit'}
    """
    data = card_data(folder)
    return {key: str(data[key]) for key in KEYS if data.get(key)}


def card_data(folder: Path | None) -> dict[str, Any]:
    """The metadata in a model's README.md; empty if there is none, or none that can be read."""
    card = folder / "README.md" if folder else None
    if card is None or not card.is_file():
        return {}
    try:
        data: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, OSError, yaml.YAMLError):  # an unreadable card states nothing
        return {}
    return data


def agreed_license(sources: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The license that all parents state; empty if one states none or they differ."""
    try:
        return common_license(sources)
    except SourceError:
        return {}


def common_license(sources: Iterable[Mapping[str, Any]], given: str | None = None) -> dict[str, str]:
    """The license of a merge: the given one, else the one that all parents state, else none.

    Args:
        sources: for each parent its `id` or `folder`, and its license metadata.
        given: the license that the user chose.

    Raises:
        SourceError: the parents state different licenses, and none was given.

    >>> common_license([{"id": "user/pets", "license": "mit"}, {"id": "user/birds", "license": "mit"}])
    {'license': 'mit'}
    """
    if given is not None:
        return {"license": given}
    parents = [(str(source.get("id") or source.get("folder") or "a model in memory"), source) for source in sources]
    found = {name: {key: source[key] for key in KEYS if source.get(key)} for name, source in parents}
    stated = [license for license in found.values() if license]
    if any(license != stated[0] for license in stated):
        shown = ", ".join(
            f"{name}: {license.get('license_name') or license.get('license') or 'none stated'}"
            for name, license in found.items()
        )
        raise SourceError(
            f"the parents have different licenses ({shown}): choose one that complies with all of them (license=..., "
            "or --license)"
        )
    return stated[0] if stated and len(stated) == len(found) else {}

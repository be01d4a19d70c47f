"""The merge that a recipe describes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.merge import checked_options, merge
from hf_zipit.merging.merger import Merged
from hf_zipit.recipe import PinnedSource, Recipe, read_recipe
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.load import load
from hf_zipit.sources.source import Source


def merge_recipe(
    recipe: str | Path | Recipe,
    access: Access = NOTHING,
    check: Callable[[Recipe, Sequence[Source]], None] | None = None,
    **changes: Any,
) -> Merged:
    """Merge as a recipe says; the `zipit_config.yml` of a merged repository makes the same weights again.

    Args:
        recipe: a YAML file, or what `read_recipe` returns.
        access: what the user allows when models are read; a recipe cannot.
        check: called with the recipe and the opened models before any image is read; what it raises ends the merge.
        changes: values that take the place of the recipe's.

    Raises:
        OptionError: the recipe cannot be read, has an unknown key, or names no place for a model.
        SourceError: a model is not the one that the recipe was written for.
        ZipItError: as for `hf_zipit.merge`.

    >>> merged = merge_recipe("recipe.yml", cut="layer3")  # doctest: +SKIP
    """
    recipe = recipe.changed(**changes) if isinstance(recipe, Recipe) else read_recipe(recipe, **changes)
    checked_options({"sources": recipe.sources, **recipe.arguments()})
    sources = [_source(entry, number, access) for number, entry in enumerate(recipe.sources, 1)]
    if check is not None:
        check(recipe, sources)
    return merge(sources, **recipe.arguments(), token=access.token)


def _source(entry: str | PinnedSource, number: int, access: Access) -> Source:
    if isinstance(entry, str):
        return load(entry, access=access)
    if entry.ref is None:
        known = f"the folder '{entry.folder}', at a place it does not tell" if entry.folder else "a model in memory"
        raise OptionError(f"model {number} of the recipe was {known}: name the models beside the recipe")
    source = load(entry.ref, access=access)
    found = source.origin.get("sha256")
    if entry.sha256 and found != entry.sha256:
        raise SourceError(
            f"{entry.ref} is not the model that the recipe was written for: its weights have the sha256 "
            f"{str(found)[:12]}..., not {entry.sha256[:12]}.... To merge others, name them beside the recipe"
        )
    return source

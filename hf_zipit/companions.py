"""The text files beside the weights of a merge: card, recipe and spec."""

from typing import Any

import yaml

from hf_zipit.card import card
from hf_zipit.configuration_zipit import ZipItConfig
from hf_zipit.licence import agreed_licence
from hf_zipit.recipe import PinnedSource, Recipe, make_recipe

SPEC, RECIPE, CARD = "zipit_spec.yaml", "zipit_config.yml", "README.md"


def companions(
    config: ZipItConfig, spec_text: str | None, data: list[str] | None = None, **options: Any
) -> dict[str, str]:
    """The files by name.

    Args:
        config: of the merged model.
        spec_text: the spec it was merged with, where it is known.
        data: what the images were read from, where that is to be told.
        options: of the card; its licence is the one that all parents state, if there is one.
    """
    full = recipe(config, data)
    options = {"licence": agreed_licence((config.zipit or {}).get("sources", [])), **options}
    texts = {CARD: card(config, recipe=_recipe_text(_public(full)), **options), RECIPE: _recipe_text(full)}
    return texts | ({SPEC: spec_text} if spec_text else {})


def _public(recipe: Recipe) -> Recipe:
    """The recipe for the card: where parents and images lie on this machine is nobody's business."""
    sources = [s if isinstance(s, str) else s.model_copy(update={"path": None}) for s in recipe.sources]
    local = any(ref.startswith((".", "/", "~")) for ref in recipe.data or [])
    return recipe.model_copy(update={"sources": sources, "data": None if local else recipe.data})


def recipe(config: ZipItConfig, data: list[str] | None = None) -> Recipe:
    """The recipe that makes these weights again.

    Args:
        config: of the merged model.
        data: what the images were read from, where they have a place.
    """
    about = config.zipit or {}
    known = PinnedSource.model_fields
    sources = [{k: v for k, v in source.items() if k in known} for source in about.get("sources", [])]
    return make_recipe(
        sources=sources,
        data=data,
        tasks=config.tasks,
        cut=config.cut,
        spec=SPEC,
        generator=about.get("generator"),
        **about.get("recipe", {}),
    )


def without_places(text: str) -> str:
    """The text of a recorded recipe without paths: sources keep their ids, hashes and folders' names."""
    recorded = make_recipe(**(yaml.safe_load(text) or {}))
    sources = [s if isinstance(s, str) else s.model_copy(update={"path": None}) for s in recorded.sources]
    local = any(ref.startswith((".", "/", "~")) for ref in recorded.data or [])
    return _recipe_text(recorded.model_copy(update={"sources": sources, "data": None if local else recorded.data}))


def _recipe_text(recipe: Recipe) -> str:
    text = yaml.safe_dump(recipe.recorded(), sort_keys=False, allow_unicode=True)
    return f"# hf-zipit merge {RECIPE} -o OUT makes these weights again; paths are relative to this file\n{text}"

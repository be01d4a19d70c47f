"""The text files beside the weights of a merge: card, recipe and spec."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.recipe import PinnedSource, Recipe, make_recipe
from hf_zipit.saving.card import card
from hf_zipit.saving.license import agreed_licence

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
    public = _public(full)
    options = {"licence": agreed_licence((config.zipit or {}).get("sources", [])), **options}
    again = _again(public, (config.zipit or {}).get("data", []))
    texts = {CARD: card(config, recipe=_yaml(public), again=again, **options), RECIPE: _recipe_text(full)}
    return texts | ({SPEC: spec_text} if spec_text else {})


def _again(recipe: Recipe, images: Sequence[Mapping[str, Any]]) -> str:
    """The sentence for the card that says how the recipe makes the weights again, and what it cannot know."""
    sources = [source for source in recipe.sources if isinstance(source, PinnedSource)]
    parents = [(source.ref, source.ref or source.folder) for source in sources]  # what is on the Hub, what it is called
    data = [(part.get("ref"), part.get("ref") or part.get("folder")) for part in images]
    names = [str(name) for place, name in [*parents, *data] if place is None]
    if not all(name for _, name in [*parents, *data]):
        return "Models or images were given in memory, so no command makes these weights again. This is how it was done"
    elsewhere = [any(place is None for place, _ in group) for group in (parents, data)]
    given = [shlex.quote(str(name)) for _, name in parents] if elsewhere[0] else []
    given += [f"--data {shlex.quote(str(name))}" for _, name in data] if elsewhere[1] else []
    command = f"`{' '.join(['hf-zipit merge', RECIPE, *given, '-o again'])}` makes these weights again"
    if not names:
        return command
    return f"{command}, with your own paths for {', '.join(f'`{name}`' for name in names)}, which are not on the Hub"


def _public(recipe: Recipe) -> Recipe:
    """The recipe for others: where parents and images lie on this machine is nobody's business."""
    sources = [s if isinstance(s, str) else s.model_copy(update={"path": None}) for s in recipe.sources]
    local = any(ref.startswith((".", "/", "~")) for ref in recipe.data or [])
    return recipe.model_copy(update={"sources": sources, "data": None if local else recipe.data})


def recipe(config: ZipItConfig, data: list[str] | None = None) -> Recipe:
    """The recipe that makes these weights again.

    Args:
        config: of the merged model.
        data: what the images were read from, where they have a place; by default what is known from the Hub.
    """
    about = config.zipit or {}
    known = PinnedSource.model_fields
    on_hub = [part.get("ref") for part in about.get("data", [])]
    sources = [{k: v for k, v in source.items() if k in known} for source in about.get("sources", [])]
    return make_recipe(
        sources=sources,
        data=data or (on_hub if on_hub and all(on_hub) else None),
        tasks=config.tasks,
        cut=config.cut,
        spec=SPEC,
        generator=about.get("generator"),
        **about.get("recipe", {}),
    )


def without_places(text: str) -> str:
    """The text of a recorded recipe without paths: sources keep their ids, hashes and folders' names."""
    return _recipe_text(_public(make_recipe(**(yaml.safe_load(text) or {}))))


def _recipe_text(recipe: Recipe) -> str:
    return f"# {CARD} says how to make these weights again with it; paths are relative to this file\n{_yaml(recipe)}"


def _yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.recorded(), sort_keys=False, allow_unicode=True)

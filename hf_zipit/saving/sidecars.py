"""The text files beside the weights of a merge: model card, recipe and spec."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hf_zipit.matching.registry import absent_methods
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.recipe import PinnedSource, Recipe
from hf_zipit.saving.card import card
from hf_zipit.saving.license import agreed_license
from hf_zipit.saving.provenance import Provenance

SPEC, RECIPE, CARD = "zipit_spec.yaml", "zipit_config.yml", "README.md"


def sidecar_files(
    config: ZipItConfig, spec_text: str | None, data: list[str] | None = None, base: str | None = None, **options: Any
) -> dict[str, str]:
    """The texts of card, recipe and spec by file name.

    Args:
        config: config of the merged model.
        spec_text: the spec it was merged with; `None` if unknown.
        data: where the images were read from, for the recipe; by default their Hub ids.
        base: where the base was read from, for the recipe; by default its Hub id.
        options: passed to `card`; `license` defaults to the license that all parents state.
    """
    about = Provenance.of(config)
    full = recipe_of(config, data, base)
    public = _public(full)
    options = {"license": agreed_license(about.sources), **options}
    reproduction = _reproduction(public, about.data)
    texts = {
        CARD: card(config, recipe=_yaml(public), reproduction=reproduction, **options),
        RECIPE: _recipe_text(full),
    }
    return texts | ({SPEC: spec_text} if spec_text else {})


def _reproduction(recipe: Recipe, images: Sequence[Mapping[str, Any]]) -> str:
    """The sentence of the card, without a final stop, that introduces the recipe and says how to run it."""
    sources = [source for source in recipe.sources if isinstance(source, PinnedSource)]
    parents = [(source.ref, source.ref or source.folder) for source in sources]  # (Hub id, name to show)
    data = [(part.get("ref"), part.get("ref") or part.get("folder")) for part in images]
    base = [(recipe.base.ref, recipe.base.ref or recipe.base.folder)] if isinstance(recipe.base, PinnedSource) else []
    if not all(name for _, name in [*parents, *data, *base]):
        return (
            "Some of the models or images were passed in memory, so no command reproduces these weights. They were "
            "made with this recipe"
        )
    arguments = []
    if any(ref is None for ref, _ in parents):
        arguments += [shlex.quote(str(name)) for _, name in parents]
    if any(ref is None for ref, _ in data):
        arguments += [f"--data {shlex.quote(str(name))}" for _, name in data]
    arguments += [f"--base {shlex.quote(str(name))}" for ref, name in base if ref is None]
    verb = "fold" if len(sources) == 1 else "merge"
    command = f"`{' '.join([f'hf-zipit {verb}', RECIPE, *arguments, '-o again'])}` reproduces these weights"
    local = [str(name) for ref, name in [*parents, *data, *base] if ref is None]
    if not local:
        return command
    names = ", ".join(f"`{name}`" for name in local)
    return f"{command}; replace {names}, which {'are' if len(local) > 1 else 'is'} not on the Hub, with your own paths"


def _public(recipe: Recipe) -> Recipe:
    """The recipe for publication, local paths removed."""
    sources = [s if isinstance(s, str) else s.model_copy(update={"path": None}) for s in recipe.sources]
    local = any(ref.startswith((".", "/", "~")) for ref in recipe.data or [])
    base = recipe.base.model_copy(update={"path": None}) if isinstance(recipe.base, PinnedSource) else recipe.base
    return recipe.model_copy(update={"sources": sources, "data": None if local else recipe.data, "base": base})


@absent_methods()
def recipe_of(config: ZipItConfig, data: list[str] | None = None, base: str | None = None) -> Recipe:
    """The recipe that reproduces a merge.

    Args:
        config: config of the merged model.
        data: where the images were read from; by default their Hub ids, if all have one.
        base: where the base was read from; by default its Hub id, if it has one.
    """
    about = Provenance.of(config)
    known = PinnedSource.model_fields
    options = dict(about.recipe)
    if base is not None and not options["base"].get("id"):  # a base on the Hub is known by its id
        options["base"] = {**options["base"], "path": base}
    hub_ids = [part.get("ref") for part in about.data]
    sources = [{key: value for key, value in source.items() if key in known} for source in about.sources]
    return Recipe(
        sources=sources,
        data=data or (hub_ids if hub_ids and all(hub_ids) else None),
        tasks=config.tasks,
        cut=config.cut,
        spec=SPEC,
        generator=about.generator,
        **options,
    )


@absent_methods()
def without_local_paths(text: str) -> str:
    """The text of a recorded recipe for publication: ids, hashes and folder names stay, local paths are removed."""
    return _recipe_text(_public(Recipe(**(yaml.safe_load(text) or {}))))


def _recipe_text(recipe: Recipe) -> str:
    return f"# {CARD} shows the command that runs this recipe. Paths are relative to this file.\n{_yaml(recipe)}"


def _yaml(recipe: Recipe) -> str:
    return yaml.safe_dump(recipe.recorded(), sort_keys=False, allow_unicode=True)

"""A merge written down: one schema for the keywords of `hf_zipit.merge`, the flags of `hf-zipit merge`, and YAML files.

A recipe is data: it can name models and images, but it cannot hand over a token or allow code of others to run.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hf_zipit.errors import OptionError

SUFFIXES = (".yml", ".yaml")
OF_THE_RUN = frozenset(
    {"device", "cache", "generator"}
)  # how it is run and who wrote it: without influence on the result


class PinnedSource(BaseModel):
    """A model as a merged repository records it: where it was, and the hash that its weights must have."""

    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, description="Hub id, user/name.")
    revision: str | None = Field(None, description="Commit on the Hub.")
    path: str | None = Field(None, description="Folder, relative to the recipe.")
    folder: str | None = Field(None, description="Name of a folder whose place is not known.")
    sha256: str | None = Field(None, description="Hash that model.safetensors must have.")

    @property
    def ref(self) -> str | None:
        """What `hf_zipit.merge` takes; `None` if the model was in memory, or on a machine that is not known."""
        if self.id is not None:
            return f"{self.id}@{self.revision}" if self.revision else self.id
        return self.path


class Recipe(BaseModel):
    """Everything that decides what a merge gives; keys, defaults and meanings are those of `hf_zipit.merge`.

    >>> Recipe(sources=["user/pets", "user/birds"], data="user/animals", cut="layer3").data
    ['user/animals']
    """

    model_config = ConfigDict(extra="forbid", title="hf-zipit recipe")
    sources: list[str | PinnedSource] = Field(
        [], description="Models: Hub ids (user/name or user/name@revision) or folders."
    )
    data: list[str] | None = Field(
        None,
        description="Images without labels: Hub id, image folder or parquet, with or without :split; "
        "one for all models, or one each.",
    )
    method: str = Field(
        "zip",
        description="zip, select, permute, average, optimal, kmeans, git-rebasin, weight-zip, mudsc-align or "
        "mudsc-zip; controls: first-parent, last-parent or random.",
    )
    cut: str | None = Field(None, description="Merge up to here, e.g. layer2; default: all layers.")
    alpha: float = Field(0.1, description="zip, *-zip: penalty on merging many units into one, 0 to 1.")
    beta: float = Field(0.8, description="zip, *-zip: share of merges that may happen within a model, 0 to 1.")
    compat: bool = Field(False, description="Follow the authors' code exactly.")
    balance: float | Literal["auto"] = Field(
        0.5, description="mudsc-*: weight of the weights against the activations, 0 to 1, or auto."
    )
    balance_data: list[str] | None = Field(None, description="balance auto: labelled images to choose it by.")
    sweeps: int = Field(100, description="Methods that compare weights: sweeps over all spaces, at most.")
    width: float = Field(1.0, description="Merged units for each unit of one model.")
    flops_budget: float | None = Field(
        None, description="Choose cut and widths for at most so many FLOPs, in forwards of one model."
    )
    num_images: int | list[int] | None = Field(
        None, description="Images per data set, one number for all or one each; default: all."
    )
    batch_size: int = Field(32, description="Images per forward pass.")
    calibrate: str = Field(
        "batchnorm", description="batchnorm, repair, refit, refit-per-task, refit-joint, refit-heads or none."
    )
    tasks: list[str] | None = Field(None, description="Name of each task, in model order.")
    seed: int = Field(0, description="Chooses the images.")
    device: str | None = Field(None, description="Where to run, e.g. cpu or cuda:0.")
    spec: str | None = Field(None, description="Use this spec file instead of the shipped one.")
    backbone: str | None = Field(
        None, description="Path of the backbone in models that surround it with more, such as encoder."
    )
    cache: bool = Field(True, description="Keep statistics on disk for another merge of these models.")
    generator: str | None = Field(None, description="What wrote the recipe; not read.")

    @field_validator("data", "balance_data", mode="before")
    @classmethod
    def _one_data_set(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("num_images")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `hf_zipit.merge`, all but the sources."""
        return {name: getattr(self, name) for name in type(self).model_fields if name not in ("sources", "generator")}

    def changed(self, **changes: Any) -> "Recipe":
        """This recipe with other values.

        Raises:
            OptionError: an unknown key, or a value of the wrong kind.
        """
        return make_recipe(**{**self.model_dump(), **changes}) if changes else self

    def recorded(self) -> dict[str, Any]:
        """As plain values for a file: without what only concerns one run, and without options that are not set."""
        return self.model_dump(mode="json", exclude=set(OF_THE_RUN - {"generator"}), exclude_none=True)


def read_recipe(file: str | Path, **changes: Any) -> Recipe:
    """Read a recipe; relative paths in it are relative to its folder.

    Args:
        file: a YAML file.
        changes: values that take the place of those in the file.

    Raises:
        OptionError: it cannot be read, has an unknown key, or a value of the wrong kind.

    >>> read_recipe("recipe.yml", cut="layer3")  # doctest: +SKIP
    """
    file = Path(file)
    if not file.is_file():
        raise OptionError(f"cannot read the recipe {file}: there is no such file")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"cannot read the recipe {file}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise OptionError(f"{file} is no recipe: it holds no keys such as 'sources:' and 'data:'")
    recipe = _checked(values, str(file))
    placed = recipe.model_copy(
        update={
            "sources": [_placed_source(source, file.parent) for source in recipe.sources],
            "data": recipe.data and [_placed(ref, file.parent) for ref in recipe.data],
            "balance_data": recipe.balance_data and [_placed(ref, file.parent) for ref in recipe.balance_data],
            "spec": recipe.spec and str(file.parent / recipe.spec),
        }
    )
    return placed.changed(**changes)


def make_recipe(**values: Any) -> Recipe:
    """A recipe from values in memory.

    Raises:
        OptionError: an unknown key, or a value of the wrong kind.
    """
    return _checked(values, "the options")


def _checked(values: Mapping[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(dict(values))
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")  # a typo says most
        typo = first["type"] == "extra_forbidden"
        names = {*Recipe.model_fields, *PinnedSource.model_fields, *(first["loc"][-1:] if typo else ())}
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in names)  # but for types
        if typo:
            known = PinnedSource if "PinnedSource" in first["loc"] else Recipe
            near = difflib.get_close_matches(str(first["loc"][-1]), known.model_fields, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"keys: {', '.join(known.model_fields)}"
            raise OptionError(f"{where}: unknown key '{key}'; {hint}") from None
        raise OptionError(f"{where}: {key} is {first['input']!r}: {first['msg'].lower()}") from None


def _placed_source(source: str | PinnedSource, base: Path) -> str | PinnedSource:
    if isinstance(source, str):
        return _placed(source, base)
    return source.model_copy(update={"path": source.path and str(base / source.path)})


def _placed(ref: str, base: Path) -> str:
    """A relative path is one if something is there, or if it starts with a dot; else it is a Hub id."""
    path = ref if (base / ref).exists() or ":" not in ref else ref.rpartition(":")[0]
    relative = (base / path).exists() or ref.startswith((".", "~"))
    return str(base / Path(ref).expanduser()) if relative else ref

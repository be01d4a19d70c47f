"""Recipes: everything that determines a merge, as keywords of `hf_zipit.merge`, flags of `hf-zipit merge`, or YAML.

A recipe is plain data. It can name models and images, but it cannot hold a token or allow third-party code to run.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hf_zipit.calibration.methods import check_calibration
from hf_zipit.calibration.methods import described as calibrations
from hf_zipit.errors import OptionError
from hf_zipit.matching.options import AUTO, Options
from hf_zipit.settings import Settings

SUFFIXES = (".yml", ".yaml")
OF_THE_RUN = frozenset({"device", "cache", "generator"})  # they do not affect the result
NO_OPTIONS = frozenset({"sources", "data", "generator"})  # the inputs, and the program that wrote the recipe
WIDTH = 116  # of generated docstrings, in characters
_Function = TypeVar("_Function", bound=Callable[..., Any])


class PinnedSource(BaseModel):
    """A model in the recipe of a saved merge: where it is, and the hash that its weights must have."""

    model_config = ConfigDict(extra="forbid")
    id: str | None = Field(None, description="Hub id, user/name.")
    revision: str | None = Field(None, description="Commit on the Hub.")
    path: str | None = Field(None, description="Folder, relative to the recipe file.")
    folder: str | None = Field(None, description="Name of a folder whose path is not recorded.")
    sha256: str | None = Field(None, description="SHA-256 that model.safetensors must have.")

    @property
    def ref(self) -> str | None:
        """The model as an argument of `hf_zipit.merge`; `None` if it was in memory or its path is not recorded."""
        if self.id is not None:
            return f"{self.id}@{self.revision}" if self.revision else self.id
        return self.path


class Inputs(Settings):
    """The models and images of a merge, by name."""

    sources: list[str | PinnedSource] = Field(
        [], description="Models to merge: Hub ids (user/name or user/name@revision) or folders."
    )
    data: list[str] | None = Field(
        None,
        description="Images; labels are not used. Hub id, image folder or parquet file, optionally with :split; one "
        "for all models, or one per model.",
    )

    @field_validator("sources", "data", "balance_data", mode="before", check_fields=False)
    @classmethod
    def _as_names(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str | Path) else value
        return [str(v) if isinstance(v, Path) else v for v in values] if isinstance(values, list | tuple) else values


class Recipe(Options, Inputs):
    """Everything that determines the result of a merge. Each option is one field, here or in `Options`.

    >>> Recipe(sources=["user/pets", "user/birds"], data="user/animals", cut="layer3").data
    ['user/animals']
    """

    model_config = ConfigDict(title="hf-zipit recipe")
    balance_data: list[str] | None = Field(
        None,
        description="Labelled images, as for data. With balance auto, the merge that is most accurate on them is kept, "
        "instead of the one closest to the parents.",
    )
    cut: str | None = Field(
        None,
        description="Merge up to this step or stage, e.g. layer2; each task keeps its own layers after it. "
        "Default: merge all layers except the classifiers.",
    )
    num_images: int | list[int] | None = Field(
        None,
        description="Images per data set, selected by the seed; one number for all data sets, or one per data set. "
        "Default: all.",
    )
    batch_size: int = Field(32, ge=1, description="Images per forward pass.")
    calibrate: str = Field(
        "batchnorm", description=f"How the merged model is calibrated on the images.\n\n{calibrations()}"
    )
    tasks: list[str] | None = Field(
        None, description="Names of the tasks, in the order of the models. Default: the models' names."
    )
    seed: int = Field(0, description="Seed that selects the images.")
    device: str | None = Field(None, description="Device to run on, e.g. cpu or cuda:0. Default: chosen by accelerate.")
    spec: str | None = Field(
        None, description="Spec file of the models. Default: the shipped one for their class, or else a trace."
    )
    backbone: str | None = Field(
        None,
        description="Path of the backbone in models that have a module there, e.g. encoder. Default: the first module "
        "that a spec describes.",
    )
    cache: bool = Field(
        True, description="Cache activation statistics on disk, for other merges of the same models on the same images."
    )
    generator: str | None = Field(None, description="Program that wrote the recipe; ignored.")

    @field_validator("num_images")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("calibrate")
    @classmethod
    def _known_calibration(cls, value: str) -> str:
        check_calibration(value)
        return value

    @field_validator("spec", "device", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else str(value)

    @model_validator(mode="after")
    def _data_for_a_choice(self) -> "Recipe":
        self.check_balance_data(self.balance_data)
        return self

    def check_balance_data(self, data: Any) -> None:
        """Refuse labelled images unless the balance is chosen with them.

        Args:
            data: The labelled images, or `None`.

        Raises:
            OptionError: There are labelled images, but the balance is a number.
        """
        if data is not None and self.balance != AUTO:
            raise OptionError(
                f"balance_data needs balance '{AUTO}', but balance is {self.balance}: pass balance='{AUTO}'"
            )

    @property
    def reads_images(self) -> bool:
        """Whether the merge reads images."""
        return self.needs_statistics or self.calibrate != "none"

    @property
    def decisions(self) -> dict[str, Any]:
        """The options that distinguish merges of the same models on the same images: matching, cut and calibration."""
        return {**self.options.model_dump(), "cut": self.cut, "calibrate": self.calibrate}

    def changed(self, **changes: Any) -> "Recipe":
        """A copy of this recipe with other values.

        Raises:
            OptionError: A key is unknown, or a value has the wrong type or is out of range.
        """
        return Recipe(**{**dict(self), **changes}) if changes else self

    def recorded(self) -> dict[str, Any]:
        """Plain values for a recipe file, without unset options and options that do not affect the result."""
        return self.model_dump(mode="json", exclude=set(OF_THE_RUN - {"generator"}), exclude_none=True)


def read_recipe(file: str | Path, **changes: Any) -> Recipe:
    """Read a recipe file. Relative paths in it are relative to its folder.

    Args:
        file: A YAML file.
        changes: Values that override those in the file.

    Raises:
        OptionError: The file cannot be read, a key is unknown, or a value has the wrong type or is out of range.

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
        raise OptionError(f"{file} is not a recipe: a recipe has keys such as 'sources:' and 'data:'")
    try:
        return Recipe(**{**_located(values, file.parent), **changes})
    except OptionError as error:
        if _refuses(changes, error):
            raise
        raise OptionError(f"{file}: {error}") from None


def _located(values: Mapping[Any, Any], base: Path) -> dict[str, Any]:
    """The values of a recipe file with its relative paths made absolute; what is malformed is left for validation."""
    found = {str(name): value for name, value in values.items()}
    for name in ("sources", "data", "balance_data"):
        given = found.get(name)
        if isinstance(given, str):
            found[name] = [_placed(given, base)]
        elif isinstance(given, list):
            found[name] = [_placed_entry(entry, base) for entry in given]
    if isinstance(found.get("spec"), str):
        found["spec"] = str(base / found["spec"])
    return found


def _placed_entry(entry: Any, base: Path) -> Any:
    """A model or data set by name, or a model as a merge records it."""
    if isinstance(entry, str):
        return _placed(entry, base)
    if isinstance(entry, dict) and isinstance(entry.get("path"), str):
        return {**entry, "path": str(base / entry["path"])}
    return entry


def _refuses(changes: Mapping[str, Any], error: OptionError) -> bool:
    """Whether the changes alone have this fault, so that it is not the file's."""
    try:
        Recipe(**changes)
    except OptionError as own:
        return str(own) == str(error)
    return False


def takes_options(function: _Function) -> _Function:
    """List the options of a recipe in the signature and the docstring of a function that takes `**options`.

    `{options}` in the `Args` section of the docstring is replaced by their descriptions.
    """
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    left_out = NO_OPTIONS.union(signature.parameters)
    fields = {name: field for name, field in Recipe.model_fields.items() if name not in left_out}
    keywords = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.annotation)
        for name, field in fields.items()
    ]
    before = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    after = [p for p in own if p.kind is p.KEYWORD_ONLY]
    function.__signature__ = signature.replace(parameters=[*before, *keywords, *after])  # type: ignore[attr-defined]
    entries = "\n".join(_docstring_entry(name, field.description or "") for name, field in fields.items())
    function.__doc__ = (function.__doc__ or "").replace("        {options}", entries)
    return function


def _docstring_entry(name: str, description: str) -> str:
    """An entry of an `Args` section; the paragraphs of the description after the first are indented below it."""
    first, *others = description.split("\n\n")
    lines = [textwrap.fill(f"{name}: {first}", WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 12)]
    lines += [textwrap.fill(text, WIDTH, initial_indent=" " * 12, subsequent_indent=" " * 14) for text in others]
    return "\n".join(lines)


def _placed(ref: str, base: Path) -> str:
    """A reference to a model or data set; a relative path is joined to the base folder.

    It is a path if that path exists, or if it starts with a dot or a tilde; otherwise it is a Hub id.
    """
    path = ref if (base / ref).exists() or ":" not in ref else ref.rpartition(":")[0]
    relative = (base / path).exists() or ref.startswith((".", "~"))
    return str(base / Path(ref).expanduser()) if relative else ref

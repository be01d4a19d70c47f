"""Recipes: everything that determines a merge, as keywords of `hf_zipit.merge`, flags of `hf-zipit merge`, or YAML.

A recipe is plain data. It can name models and images, but it cannot hold a token or allow third-party code to run.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hf_zipit.calibration.methods import CALIBRATIONS, check_calibration
from hf_zipit.calibration.methods import described as calibrations
from hf_zipit.errors import OptionError
from hf_zipit.files import documents
from hf_zipit.files.references import located
from hf_zipit.matching.options import AUTO, Options
from hf_zipit.settings import Settings, shown

SUFFIXES = (".yml", ".yaml")
OF_THE_RUN = frozenset({"device", "cache", "generator"})  # they do not affect the result
NO_OPTIONS = frozenset({"sources", "data", "generator"})  # the inputs, and the program that wrote the recipe
REFERENCES = ("sources", "data", "balance_data")  # keys that name models or data sets
WIDTH = 116  # of generated docstrings, in characters
NO_CUT = "none"  # as a cut: all layers are merged
MAX_TASK = 100  # characters of a task's name
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
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

    @field_validator("sources", "data", "balance_data", check_fields=False)
    @classmethod
    def _no_empty_names(cls, value: Any, info: ValidationInfo) -> Any:
        if value == [] and info.field_name != "sources":
            raise OptionError(f"{info.field_name} is an empty list: leave it out, or name a data set")
        if any(isinstance(name, str) and not name.strip() for name in value or ()):
            raise OptionError(f"{info.field_name} is {shown(value)}: one of the names is empty")
        return value


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
        "Default: none, which merges all layers except the classifiers.",
    )
    num_images: Count | list[Count] | None = Field(
        None,
        description="Images per data set, selected by the seed; one number for all data sets, or one per data set. "
        "Default: all.",
    )
    skip_bad_images: int = Field(
        0,
        ge=0,
        description="How many images per data set may be damaged or unreadable; they are left out and named. If there "
        "are more, the merge stops.",
    )
    label_column: str | None = Field(
        None,
        description="Column of the labels. Default: of several, the one with the classes of the task.",
    )
    batch_size: int = Field(32, ge=1, le=10**6, description="Images per forward pass.")
    calibrate: str = Field(
        "batchnorm",
        description=f"How the merged model is calibrated on the images.\n\n{calibrations()}",
        json_schema_extra=lambda schema: schema.update(enum=list(CALIBRATIONS)),
    )
    tasks: list[str] | None = Field(
        None, description="Names of the tasks, in the order of the models. Default: the models' names."
    )
    seed: int = Field(
        0, ge=-(2**63), le=2**64 - 1, description="Seed that selects the images, and those that a refit holds out."
    )
    device: str | None = Field(None, description="Device to run on, e.g. cpu or cuda:0. Default: chosen by accelerate.")
    spec: str | None = Field(
        None, description="Spec file of the models. Default: the shipped one for their class, or else a trace."
    )
    backbone: str | None = Field(
        None,
        min_length=1,
        description="Path of the backbone in models that have a module there, e.g. encoder. Default: the first module "
        "that a spec describes.",
    )
    cache: bool = Field(
        True, description="Cache activation statistics on disk, for other merges of the same models on the same images."
    )
    generator: str | None = Field(None, description="Program that wrote the recipe; ignored.")

    @field_validator("num_images", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        if value == []:
            raise OptionError("num_images is an empty list: leave it out, or give a number of images")
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("calibrate")
    @classmethod
    def _known_calibration(cls, value: str) -> str:
        check_calibration(value)
        return value

    @field_validator("cut")
    @classmethod
    def _no_cut(cls, value: str | None) -> str | None:
        return None if value == NO_CUT else value

    @field_validator("tasks")
    @classmethod
    def _names_of_tasks(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if not name.strip() or name != name.strip() or "/" in name or "\\" in name or len(name) > MAX_TASK:
                raise OptionError(
                    f"tasks: {shown(name)} cannot name a task: a name has 1 to {MAX_TASK} characters, no slashes, "
                    "and no spaces around it"
                )
        if value is not None and len(set(value)) < len(value):
            raise OptionError(f"tasks is {shown(value)}: the names must differ")
        return value

    @field_validator("cut", "device", "spec")
    @classmethod
    def _not_empty(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not value.strip():
            raise OptionError(f"{info.field_name} is {shown(value)}: leave it out, or give a value")
        return value

    @field_validator("spec", "device", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        plain = value is None or isinstance(value, str | int | float | list | dict)  # a number is no name
        return value if plain else str(value)

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
    """Read a recipe file. Relative paths in it are relative to its folder, and never to the current one.

    Args:
        file: A YAML file.
        changes: Values that override those in the file.

    Raises:
        OptionError: The file cannot be read, a key is unknown or given twice, a value has the wrong type or is out of
            range, or a name could mean a path or a model on the Hub.

    >>> read_recipe("recipe.yml", cut="layer3")  # doctest: +SKIP
    """
    file = Path(file)
    try:
        values = documents.load(documents.read_text(file))
    except ValueError as error:
        raise OptionError(f"cannot read the recipe {file}: {error}") from None
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"it holds {shown(values)}"
        raise OptionError(f"{file} is not a recipe: {found}, but a recipe has keys such as 'sources:' and 'data:'")
    try:
        own = {str(name): value for name, value in values.items() if name not in changes}
        return Recipe(**{**located(own, file.parent.absolute(), lists=REFERENCES, paths=("spec",)), **changes})
    except OptionError as error:
        if _refuses(changes, error):
            raise
        raise OptionError(f"{file}: {error}") from None


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

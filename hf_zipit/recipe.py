"""Recipes: everything that determines a merge, as keywords of `hf_zipit.merge`, flags of `hf-zipit merge`, or YAML.

A recipe is plain data. It can name models and images, but it cannot hold a token or allow third-party code to run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hf_zipit.calibration.methods import AUTO, CALIBRATIONS, check_calibration, reads_images
from hf_zipit.calibration.methods import described as calibrations
from hf_zipit.calibration.presets import PRESETS, expanded
from hf_zipit.calibration.presets import described as presets
from hf_zipit.data.draw import USEFUL
from hf_zipit.errors import OptionError
from hf_zipit.files import documents
from hf_zipit.files.references import located
from hf_zipit.matching.options import Options
from hf_zipit.settings import Count, Settings, Share, shown

SUFFIXES = (".yml", ".yaml")
OF_THE_RUN = frozenset({"device", "cache", "generator"})  # they do not affect the result
PLACES: dict[str, Any] = {"lists": ("sources", "data", "balance_data"), "single": ("base",), "paths": ("spec",)}
NO_CUT = "none"  # as a cut: all layers are merged
MAX_TASK = 100  # characters of a task's name
ALL = "all"  # as a number of images: those of the whole data set
OF_SEVERAL = ("balance_data", "base", "scale", "density", "preset")  # keys that make no sense for one model


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
        description="Images: Hub id, image folder or parquet file, optionally with :split. One for all models, or one "
        "per model; labels are not used.",
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
    base: str | PinnedSource | None = Field(
        None,
        description="Model that the others were fine-tuned from. A Hub id or folder, for methods that need it; its "
        "classifier is not used. Default: the one that all model cards name.",
    )
    preset: str | None = Field(
        None,
        description=f"The settings of a paper, for options not given.\n\n{presets()}",
        json_schema_extra=lambda schema: schema.update(enum=list(PRESETS)),
    )
    balance_data: list[str] | None = Field(
        None,
        description="Labelled images that choose the balance, as for data. With balance auto, the merge that is most "
        "accurate on them is kept, instead of the one closest to the parents.",
    )
    cut: str | None = Field(
        None,
        description="Last step or stage that is merged, e.g. layer2. Each task keeps its own layers after it. "
        "Default: none, which merges all layers except the classifiers.",
    )
    num_images: Count | list[Count] | Literal["all"] | None = Field(
        None,
        description="Images per data set: a number, or all. They are spread over it at random by the seed; one number "
        "is for all data sets, or give one for each. More are held out for the verdict. "
        f"Default: {USEFUL}, or as many as there are.",
    )
    verdict: bool = Field(
        True,
        description="Judge the merge on held-out images. It says how often the merge answers as its parents do, beside "
        "the best trunk of one parent.",
    )
    parent_accuracy: list[Share] | None = Field(
        None,
        description="Accuracy of each parent on its own task, 0 to 1. The verdict then states what to expect. Default: "
        "what the model cards state.",
    )
    skip_bad_images: int = Field(
        0,
        ge=0,
        description="Unreadable images to leave out per data set. They are named; more of them stop the merge.",
    )
    label_column: str | None = Field(
        None, description="Column of the labels. Default: the one with the classes of the task."
    )
    batch_size: int | None = Field(None, ge=1, le=10**6, description="Images per pass. Default: 32, or more if small.")
    calibrate: str = Field(
        AUTO,
        description=f"How the merged model is calibrated on the images.\n\n{calibrations()}",
        json_schema_extra=lambda schema: schema.update(enum=[AUTO, *CALIBRATIONS]),
    )
    tasks: list[str] | None = Field(
        None, description="Names of the tasks, in the order of the models. Default: the models' names."
    )
    seed: int = Field(0, ge=-(2**63), le=2**64 - 1, description="Seed that selects and holds out images.")
    device: str | None = Field(None, description="Device, e.g. cpu or cuda:0. Default: chosen by accelerate.")
    spec: str | None = Field(None, description="Spec file of the models. Default: the shipped one, or else a trace.")
    backbone: str | None = Field(
        None,
        min_length=1,
        description="Path of the backbone, e.g. encoder. For models that have a module there. Default: the first that "
        "a spec describes.",
    )
    cache: bool = Field(
        True, description="Keep activation statistics on disk. Other merges of the same models and images use them."
    )
    generator: str | None = Field(None, description="Program that wrote the recipe; ignored.")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        """The values, with those of a preset where none are given."""
        return expanded(values)

    @field_validator("num_images", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        if value == []:
            raise OptionError("num_images is an empty list: leave it out, or give a number of images")
        numbers = value if isinstance(value, list) else [value]
        numbers = [int(n) if isinstance(n, str) and n.removeprefix("-").isdecimal() else n for n in numbers]
        return numbers[0] if len(numbers) == 1 else numbers

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

    @field_validator("cut", "device", "spec", "base")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and not value.strip():
            raise OptionError(f"{info.field_name} is {shown(value)}: leave it out, or give a value")
        return value

    @field_validator("spec", "device", "base", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        plain = value is None or isinstance(value, str | int | float | list | dict | BaseModel)  # a number is no name
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
        """Whether the merge reads images, if there are any."""
        return self.verdict or self.needs_statistics or self.how.observes or reads_images(self.calibrate)

    @property
    def needs_images(self) -> bool:
        """Whether the merge cannot do without images."""
        matched = self.needs_statistics and self.method != AUTO
        calibrated = self.calibrate != AUTO and reads_images(self.calibrate)
        return matched or calibrated or self.how.observes or self.flops_budget is not None

    @property
    def automatic(self) -> bool:
        """Whether the method or the calibration is yet to be chosen."""
        return AUTO in (self.method, self.calibrate)

    @property
    def decisions(self) -> dict[str, Any]:
        """What distinguishes merges of the same models on the same images: matching, cut, calibration and seed."""
        return {**self.options.model_dump(), "cut": self.cut, "calibrate": self.calibrate, "seed": self.seed}

    def changed(self, **changes: Any) -> "Recipe":
        """A copy of this recipe with other values.

        Raises:
            OptionError: A key is unknown, or a value has the wrong type or is out of range.
        """
        return Recipe(**{**dict(self), **expanded(changes)}) if changes else self

    def recorded(self) -> dict[str, Any]:
        """Plain values for a recipe file, without unset options and options that do not affect the result."""
        return self.model_dump(mode="json", exclude=set(OF_THE_RUN - {"generator"}), exclude_none=True)


def read_recipe(file: str | Path, **changes: Any) -> Recipe:
    """Read a recipe file. Relative paths in it are relative to its folder, and never to the current one.

    Args:
        file: A YAML file.
        changes: Values that override those in the file.

    Raises:
        OptionError: The file cannot be read, a key is unknown or given twice, a value is of the wrong type or out of
            range, or a name could mean a path or a model on the Hub.

    >>> read_recipe("recipe.yml", cut="layer3")  # doctest: +SKIP
    """
    file = Path(file)
    changes = expanded(changes)
    try:
        values = documents.load(documents.read_text(file))
    except ValueError as error:
        raise OptionError(f"cannot read the recipe {file}: {error}") from None
    if not isinstance(values, dict):
        found = "it is empty" if values is None else f"it holds {shown(values)}"
        raise OptionError(f"{file} is not a recipe: {found}, but a recipe has keys such as 'sources:' and 'data:'")
    try:
        own = {str(name): value for name, value in values.items() if name not in changes}
        return Recipe(**{**located(own, file.parent.absolute(), **PLACES), **changes})
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

"""The options of matching: the method, its parameters, and the width of the merge."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hf_zipit.errors import OptionError
from hf_zipit.matching.method import Method
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.registry import AUTO, balanced, described, method_of, names
from hf_zipit.settings import Settings


def _how() -> str:
    """The description of the methods, with those that have been registered since."""
    return f"How units are matched.\n\n{described()}"


class Options(Settings):
    """The user's options of matching; hashable.

    >>> Options(method="zip", alpha=0.2).needs_statistics
    True
    """

    method: str = Field(
        AUTO,
        description=_how(),
        json_schema_extra=lambda schema: schema.update(enum=[AUTO, *names()], description=_how()),
    )
    alpha: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Factor against large merges, 0 to 1 (zip, *-zip). The similarity of a merged unit is multiplied "
        "by it each time it grows to as many units as there are models, or more; small values favor small merges.",
    )
    beta: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Largest share of merges within one model, 0 to 1 (zip, *-zip).",
    )
    compat: bool = Field(False, description="Reproduce the authors' code, even where it departs from their paper.")
    balance: float | Literal["auto"] = Field(
        0.5,
        description="Share of weights in the similarity, 0 to 1, or auto (mudsc-*). The rest is for activations. With "
        "auto, 0.1 to 0.9 are tried, and the merge whose outputs are closest to the parents' is kept.",
    )
    temperature: float = Field(
        0.02,
        ge=1e-4,
        le=100,
        description="Weight of the entropy of the transport (ot). At small values units are aligned almost one-to-one, "
        "as by permute; at large ones they are all mixed.",
    )
    masses: Literal["uniform", "importance"] = Field(
        "uniform",
        description="Mass of each unit in the transport (ot): the same for all, or as much as the next layers read of "
        "it.",
    )
    sweeps: int = Field(
        100,
        ge=1,
        le=10**6,
        description="Largest number of sweeps over all spaces. For methods that compare weights.",
    )
    width: float = Field(
        1.0,
        gt=0,
        description="Merged units per unit of one model, or of the widest. This is for every feature space whose width "
        "can change.",
    )
    heads: Literal["auto", "all", "all-full", "all-random", "pair"] = Field(
        "auto",
        description="What becomes of attention heads: auto, pair, all, all-full or all-random. With pair, they are "
        "matched one-to-one and averaged. With all, the heads of all models are kept, each with fewer units, "
        "at the cost of one model. With all-full, they keep all of their units, which costs more. With all- "
        "random (control), random maps take the place of fitted ones. Auto is all for select, where the "
        "models allow it, and else pair.",
    )
    scale: float | Literal["auto"] = Field(
        "auto",
        description="Factor on the merged difference to the base. For methods that need one. With auto, the one whose "
        "merge answers most like the parents on held-out images; without images, 1 over the number of models for "
        "task-arithmetic and dare, and else 1.",
    )
    density: float = Field(0.2, gt=0, le=1, description="Share of each difference that is kept (ties, dare).")
    flops_budget: float | None = Field(
        None,
        gt=0,
        description="Upper limit on FLOPs, relative to one parent. It counts all tasks, and chooses cut and widths; 1 "
        "is enough for a full merge with all its classifiers.",
    )

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        method_of(value)
        return value

    @field_validator("balance", "scale")
    @classmethod
    def _in_range(cls, value: float | str, info: ValidationInfo) -> float | str:
        most = {"balance": 1, "scale": 100}[str(info.field_name)]
        if isinstance(value, float) and not 0 <= value <= most:
            raise OptionError(f"{info.field_name} is {value:g}: it must lie between 0 and {most}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Options":
        if self.compat and self.method == AUTO:
            raise OptionError(
                "compat follows the authors' code of one method: name it, such as method zip, or a preset"
            )
        if self.flops_budget is not None and self.width != 1:
            raise OptionError(
                f"width is {self.width:g} and flops_budget is {self.flops_budget:g}: give only one of them"
            )
        if not self.how.takes(self.width):
            why = "compares nothing" if self.how.fixed else "aligns all layers at once, unit by unit"
            why = "maps units to those of one model" if self.how.dense else why
            supported = "no width below 1" if self.how.resizes else f"only width 1, as it {why}"
            raise OptionError(f"width is {self.width:g}: method '{self.method}' supports {supported}")
        if self.how.dense and self.flops_budget is not None:
            raise OptionError(
                f"flops_budget is {self.flops_budget:g}: method '{self.method}' keeps one width, as it maps units to "
                "those of one model; use zip or select, or give a cut"
            )
        if self.how.dense and self.compat:
            raise OptionError(f"compat follows the code of ZipIt! and MuDSC, which has no method '{self.method}'")
        if self.heads == "all-full" and self.flops_budget is not None:
            raise OptionError(
                f"heads is 'all-full' and flops_budget is {self.flops_budget:g}: heads with all of their units are not "
                "counted in a budget; use heads all"
            )
        if self.heads not in ("auto", "pair") and (not self.how.activations or self.compat):
            why = "compat pairs heads, as the authors do" if self.compat else f"'{self.method}' reads no activations"
            raise OptionError(f"heads is '{self.heads}', which is fitted to activations: {why}; use heads pair")
        if self.balance == AUTO and not balanced(self.method):
            known = ", ".join(name for name in METHODS if balanced(name))
            raise OptionError(f"balance is '{AUTO}': method '{self.method}' has no balance; methods with one: {known}")
        return self

    @property
    def options(self) -> "Options":
        """Only the options of matching."""
        return Options(**{name: getattr(self, name) for name in Options.model_fields})

    @property
    def how(self) -> Method:
        """The registry entry of the method; of `auto`, what may be said before it is chosen."""
        return method_of(self.method)

    @property
    def shrinks(self) -> bool:
        """Whether the result costs less than one model, so that it can be made of one model alone."""
        return self.width < 1 or (self.flops_budget or 1) < 1

    @property
    def needs_statistics(self) -> bool:
        """Whether the method reads activations."""
        return self.how.activations

    @property
    def keeps_heads(self) -> str:
        """What becomes of attention heads: `all`, `all-full`, `all-random` or `pair`."""
        if self.heads != "auto":
            return self.heads
        return "all" if self.how.heads and not self.compat else "pair"

    @property
    def ignored(self) -> list[str]:
        """Options of matching that are not at their defaults, although the method does not use them."""
        used = {"method", "compat", "width", "flops_budget", "heads", *self.how.options}
        used |= {"balance"} if balanced(self.method) else set()
        used |= {"sweeps"} if self.how.weights else set()
        unused = [name for name in Options.model_fields if name not in used]
        return [name for name in unused if getattr(self, name) != Options.model_fields[name].default]

"""The record of how a merge was made, as `config.json` keeps it under `zipit`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hf_zipit.errors import SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig

LISTS = ("sources", "data", "spaces")  # of mappings


@dataclass(frozen=True)
class Provenance:
    """How a merge was made.

    Attributes:
        generator: name and version of the software, such as `hf-zipit 0.1.0`.
        sources: one entry per parent: `id` and `revision` of a model on the Hub, or `folder` (its name) and `path`
            (relative to the saved merge) of a local one; `sha256` of its weights; its license metadata.
        recipe: the options of the merge by their names in a recipe, such as `method` and `calibrate`.
        data: one entry per data set of unlabelled images: `name`, `num_images`, and `ref` (on the Hub) or `folder`.
        spaces: one entry per merged feature space: `name`, `width`, and how many of its units are `shared` by models,
            merged `within` one model, or `alone`. Where the attention heads of all parents are kept, also the number of
            `heads`, and the share of the variance that their units have `kept`.
        balance: how `balance="auto"` chose its value: `by` which criterion, and the values `tried`.
        choice: why `method="auto"` and `calibrate="auto"` chose what the recipe holds: `reasons`, and the methods
            `tried` with minus the error of their outputs.
        verdict: how near the merge is to its parents; see `merging.verdict`.
        kept: of one model that was made smaller, the feature spaces that are as wide as before, by the reason.
    """

    generator: str | None = None
    sources: list[dict[str, Any]] = field(default_factory=list)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: list[dict[str, Any]] = field(default_factory=list)
    spaces: list[dict[str, Any]] = field(default_factory=list)
    balance: dict[str, Any] | None = None
    choice: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    kept: dict[str, list[str]] | None = None

    @classmethod
    def of(cls, config: ZipItConfig) -> "Provenance":
        """The provenance in a merged model's config; all defaults if it has none.

        >>> Provenance.of(ZipItConfig(zipit={"recipe": {"method": "zip"}})).recipe
        {'method': 'zip'}
        """
        return cls.from_dict(config.zipit)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any] | None) -> "Provenance":
        """The provenance from the plain values of a `config.json`; unknown keys are ignored.

        Raises:
            SourceError: a value is of another kind than was written.
        """
        if not isinstance(record, Mapping | None):
            raise SourceError(
                f"config.json: 'zipit' is {record!r:.60}, not a mapping: the record of the merge is damaged"
            )
        values = {one.name: record[one.name] for one in fields(cls) if record and one.name in record}
        for name, value in values.items():
            entries = value if isinstance(value, list) else [value]
            kind = str if name == "generator" else Mapping
            if isinstance(value, list) != (name in LISTS) or not all(isinstance(x, kind | None) for x in entries):
                raise SourceError(f"config.json: 'zipit.{name}' is {value!r:.60}: the record of the merge is damaged")
        return cls(**values)

    @property
    def kept_heads(self) -> str | None:
        """The attention heads that are kept of all parents, in words; `None` if there are none.

        >>> Provenance(spaces=[{"name": "qk", "width": 192, "heads": 12, "kept": 0.97}]).kept_heads
        '12 of 16 units'
        """
        found = [(s["heads"], s["width"] // s["heads"]) for s in self.spaces if s.get("heads")]
        return ", ".join(f"{heads} of {units} units" for heads, units in dict.fromkeys(found)) or None

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `config.json` holds; entries that are `None` are left out."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

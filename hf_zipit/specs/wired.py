"""The result of expanding a spec against a model, before tile counts and spaces are worked out."""

from collections.abc import Mapping
from dataclasses import dataclass

from hf_zipit.specs.grammar import Line, ProbeLine
from hf_zipit.specs.spaces import Probe, Row

OPEN = -1  # a tile count that follows from the size of the space


@dataclass(frozen=True)
class Grouping:
    """A space whose units form `count` groups; spaces with the same `axis` move their groups together."""

    space: str
    count: int
    axis: str


@dataclass(frozen=True)
class Wired:
    """A spec expanded against a model, in the order of its lines. A space has the same name throughout.

    Attributes:
        file: Name of the spec file, for error messages.
        modules: Paths of the model's modules, in registration order.
        parameters: Names of the floating tensors of the state dict that have an axis, in order.
        rows: The table; tile counts may still be `OPEN`.
        group_counts: Group axis -> number of groups, for group axes that are spaces themselves.
        claimed: Parameter -> the line that describes it.
        probes: Pairs of a space and a tensor that shows it.
        groupings: How spaces are divided into groups; a space that several lines divide has several.
        normed: Spaces under a layer norm.
        held: Parameter axes that are free in the model, but fixed in the spec.
        written: Module or block -> the space of its output, `None` for a fixed axis or a concatenation.
        stated: Space that a step of the chain names -> the space; `None` if there is none of that name.
        used: Lines that match something in the model.
    """

    file: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    rows: tuple[Row, ...]
    group_counts: Mapping[str, int]
    claimed: Mapping[str, Line]
    probes: tuple[tuple[str, Probe], ...]
    groupings: tuple[Grouping, ...]
    normed: frozenset[str]
    held: frozenset[tuple[str, int]]
    written: Mapping[str, str | None]
    stated: Mapping[str, str | None]
    used: frozenset[Line | ProbeLine]

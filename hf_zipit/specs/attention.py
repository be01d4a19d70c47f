"""Attention layers in a binding: which spaces hold queries and keys, values, and tables with an entry per head."""

from dataclasses import dataclass

from hf_zipit.specs.spaces import Binding, FeatureSpace, Row

Part = tuple[str, int]  # path of the module that writes some heads, and where they begin on its output


@dataclass(frozen=True)
class Attention:
    """An attention layer with separable heads.

    Attributes:
        axis: the group axis of its heads.
        module: path of the module that holds all of its parameters.
        heads: number of heads, H.
        logits: the space of queries and keys, of `H * u` units.
        values: the space of the values, of `H * u` units.
        tables: names of the spaces with one unit per head, such as relative position biases.
        pair: the two parts that write `logits`. Which of them is the query is for the model to show.
        value: the part that writes `values`.
    """

    axis: str
    module: str
    heads: int
    logits: FeatureSpace
    values: FeatureSpace
    tables: tuple[str, ...]
    pair: tuple[Part, Part]
    value: Part

    @property
    def units(self) -> int:
        """Units of a head, u."""
        return self.values.size // self.heads

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of all spaces that hold its heads."""
        return (self.logits.name, self.values.name, *self.tables)


def part_of(row: Row) -> Part:
    """The part that a row of a weight or bias belongs to."""
    return row.parameter.rpartition(".")[0], row.offset


def attentions(binding: Binding) -> dict[str, Attention]:
    """The attention layers of a model by group axis, in the order of the spaces.

    A group axis belongs to an attention layer if it has one space that two linear maps write and nothing reads (queries
    and keys), one space that one linear map writes and one reads (values), and otherwise only tables.
    """
    axes: dict[str, list[FeatureSpace]] = {}
    for space in binding.spaces.values():
        if space.group_axis is not None:
            axes.setdefault(space.group_axis, []).append(space)
    found = {axis: _attention(axis, spaces, binding) for axis, spaces in axes.items()}
    return {axis: attention for axis, attention in found.items() if attention is not None}


def _attention(axis: str, spaces: list[FeatureSpace], binding: Binding) -> Attention | None:
    """The attention layer of a group axis, if it is one."""
    rows = {space.name: [row for row in binding.table if row.space == space.name] for space in spaces}
    written = {name: _parts(mine) for name, mine in rows.items()}
    read = {name: [row for row in mine if row.role == "read"] for name, mine in rows.items()}
    logits = [s for s in spaces if s.probes and not read[s.name] and len(written[s.name]) == 2]
    values = [s for s in spaces if s.probes and len(read[s.name]) == 1 and len(written[s.name]) == 1]
    tables = [s for s in spaces if not s.probes and s.size == s.groups]
    if len(logits) != 1 or len(values) != 1 or len(logits) + len(values) + len(tables) != len(spaces):
        return None
    if logits[0].size != values[0].size:
        return None
    first, second = written[logits[0].name]
    (value,) = written[values[0].name]
    paths = [first[0], second[0], value[0], read[values[0].name][0].parameter.rpartition(".")[0]]
    return Attention(
        axis=axis,
        module=_common(paths),
        heads=values[0].groups,
        logits=logits[0],
        values=values[0],
        tables=tuple(table.name for table in tables),
        pair=(first, second),
        value=value,
    )


def _parts(rows: list[Row]) -> list[Part]:
    """The linear maps that write a space; none if anything else writes or carries it."""
    written = [row for row in rows if row.role != "read"]
    plain = all(row.role == "write" and row.before == row.after == 1 and not row.local for row in written)
    return list(dict.fromkeys(part_of(row) for row in written)) if plain else []


def _common(paths: list[str]) -> str:
    """The path of the innermost module that holds all of some modules."""
    parts = [path.split(".") for path in paths]
    same = 0
    while all(len(p) > same for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    return ".".join(parts[0][:same])

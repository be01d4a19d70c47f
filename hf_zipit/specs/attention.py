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
        values: the space of the values, of `H * u` units.
        value: the part that writes `values`.
        logits: the space of queries and keys, of `H * u` units; `None` where their units have fixed places inside a
            head, as with rotary embeddings.
        pair: the two parts that write `logits`. Which of them is the query is for the model to show.
        tables: names of the spaces with one unit per head, such as relative position biases.
    """

    axis: str
    module: str
    heads: int
    values: FeatureSpace
    value: Part
    logits: FeatureSpace | None
    pair: tuple[Part, ...]
    tables: tuple[str, ...]

    @property
    def units(self) -> int:
        """Units of a head, u."""
        return self.values.size // self.heads

    @property
    def spaces(self) -> tuple[str, ...]:
        """The names of all spaces that hold its heads."""
        return (self.values.name, *(() if self.logits is None else (self.logits.name,)), *self.tables)


def part_of(row: Row) -> Part:
    """The part that a row of a weight or bias belongs to."""
    return row.parameter.rpartition(".")[0], row.offset


def attentions(binding: Binding) -> dict[str, Attention]:
    """The attention layers of a model by group axis, in the order of the spaces.

    A group axis belongs to an attention layer if it has one space that one linear map writes and one reads (values),
    one that two linear maps write and nothing reads (queries and keys), and otherwise only tables. Queries and keys may
    also be whole heads without units of their own.
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
    read = {name: [row for row in mine if row.role == "read"] for name, mine in rows.items()}
    logits = [s for s in spaces if s.probes and not read[s.name] and len(_parts(rows[s.name])) == 2]
    values = [s for s in spaces if s.probes and len(read[s.name]) == 1 and len(_parts(rows[s.name], biases=True)) == 1]
    tables = [s for s in spaces if not s.probes and s.size == s.groups]
    whole = [row for table in tables for row in rows[table.name] if row.role == "write" and row.after > 1]
    if len(values) != 1 or len(logits) > 1 or len(logits) + len(values) + len(tables) != len(spaces):
        return None
    if logits[0].size != values[0].size if logits else len(whole) < 2:
        return None
    pair = tuple(_parts(rows[logits[0].name])) if logits else ()
    (value,) = _parts(rows[values[0].name], biases=True)
    paths = [path for path, _ in (*pair, value)] + [read[values[0].name][0].parameter.rpartition(".")[0]]
    return Attention(
        axis=axis,
        module=_common(paths),
        heads=values[0].groups,
        values=values[0],
        value=value,
        logits=logits[0] if logits else None,
        pair=pair,
        tables=tuple(table.name for table in tables),
    )


def _parts(rows: list[Row], biases: bool = False) -> list[Part]:
    """The linear maps that write a space; none if anything else writes or carries it.

    With `biases`, parameters of one axis that are not the bias of a layer may do so too.
    """
    written = [row for row in rows if row.role != "read"]
    apart = [row for row in written if row.role == "carry" and row.axis == 0 and row.offset == 0] if biases else []
    mine = [row for row in written if row not in apart]
    plain = all(row.role == "write" and row.before == row.after == 1 and not row.local for row in mine)
    return list(dict.fromkeys(part_of(row) for row in mine)) if plain else []


def _common(paths: list[str]) -> str:
    """The path of the innermost module that holds all of some modules."""
    parts = [path.split(".") for path in paths]
    same = 0
    while all(len(p) > same for p in parts) and len({p[same] for p in parts}) == 1:
        same += 1
    return ".".join(parts[0][:same])

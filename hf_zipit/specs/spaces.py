"""Feature spaces and the flat table that says which slice of which parameter lives in which space.

Statistics, transform and checks read the table and know no architecture.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hf_zipit.specs.grammar import Line, ProbeLine, Spec

Role = Literal["write", "read", "carry"]


@dataclass(frozen=True)
class Row:
    """One slice of one axis of one parameter, viewed as `(before, space size, after)`.

    `write` and `carry` rows are averaged over a merged unit (M), `read` rows are summed (U). `local` marks the input
    axis of a grouped convolution, whose index counts inside the group of the output row.
    """

    parameter: str
    axis: int
    offset: int
    length: int
    role: Role
    space: str
    before: int = 1
    after: int = 1
    local: bool = False


@dataclass(frozen=True)
class Probe:
    """The input (`in`) or output (`out`) of a module, one axis of which runs over the units of a space.

    That axis is the last of tokens (3 axes), at linear layers and in channels-last models (`last`), otherwise axis 1.
    `start` is where the
    space begins on it: a fused q, k, v projection shows several spaces side by side.
    """

    module: str
    side: str
    last: bool = False
    start: int = 0


@dataclass(frozen=True)
class FeatureSpace:
    """`size` units that must be matched as one wherever they appear.

    With `groups > 1` (GroupNorm, grouped convolutions, heads) units only mix inside their group; spaces that name the
    same `group_axis` move their groups together. A space with groups of one unit and no probe is a group axis itself
    (a table with one entry per head): it moves as the other spaces of its axis do.

    `one_to_one` spaces are never zipped within a model: those under a layer norm, whose mean and variance count every
    unit once, and those that nothing reads (queries and keys), whose units are only multiplied with each other.
    """

    name: str
    size: int
    probes: tuple[Probe, ...]
    groups: int = 1
    group_axis: str | None = None
    one_to_one: bool = False


@dataclass(frozen=True)
class Binding:
    """A spec bound to a model: spaces, table, steps, and the space that lives after each step.

    `owns` maps each step, in order, to the modules and parameters it runs, `arguments` to what else it is given.
    `classifier` names the parameters whose width is the number of classes; `unmatched` holds the spec's lines that
    this model has no module for.
    """

    spec: Spec
    spaces: dict[str, FeatureSpace]
    table: tuple[Row, ...]
    owns: dict[str, tuple[str, ...]]
    arguments: dict[str, tuple[str, ...]]
    after: dict[str, str | None]
    classifier: tuple[str, ...]
    unmatched: tuple[Line | ProbeLine, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps whose composition is the model: module paths, `call:method` or `op:name`."""
        return tuple(self.owns)

    @property
    def cuts(self) -> tuple[str, ...]:
        """Legal cuts: steps after which exactly one tensor, of one known space, is alive. `()` without a chain.

        The step that writes the classes is no cut, nor is anything after it.
        """
        return tuple(s for s in self.steps if self.after[s] is not None)

    def calls(self, steps: Iterable[str]) -> list[str]:
        """Steps as they are run: with their arguments, `layers.0(resolution=$image)`."""
        return [f"{s}({', '.join(self.arguments[s])})" if s in self.arguments else s for s in steps]

    def axis(self, ndim: int) -> int:
        """The axis of a tensor with this many axes along which the units of a space run, between steps."""
        return -1 if ndim == 3 or self.spec.channels_last else 1

    def rows(self, parameters: Iterable[str]) -> dict[str, list[Row]]:
        """The table's rows by parameter; a parameter without rows (all axes fixed) has an empty list."""
        out: dict[str, list[Row]] = {name: [] for name in parameters}
        for row in self.table:
            if row.parameter in out:
                out[row.parameter].append(row)
        return out

    def under(self, steps: Iterable[str], names: Iterable[str]) -> list[str]:
        """Those of `names` (parameters or modules) that belong to the given steps."""
        prefixes = tuple(f"{name}." for step in steps for name in self.owns[step])
        return [n for n in names if (n + ".").startswith(prefixes)]

"""Feature spaces, and the flat table that maps slices of parameters to them.

Statistics, transform and checks read this table and nothing else about an architecture.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from hf_zipit.models.rerun import Outline
from hf_zipit.models.steps import step_runs
from hf_zipit.specs.grammar import Line, ProbeLine, Spec

Role = Literal["write", "read", "carry"]


@dataclass(frozen=True)
class Row:
    """One slice of one axis of one parameter, viewed as `(before, space size, after)`.

    A merge averages `write` and `carry` rows over the members of a merged unit (M) and sums `read` rows (U).

    Attributes:
        parameter: Name in the state dict.
        axis: Axis of the parameter.
        offset: Start of the slice.
        length: Length of the slice, `before * size * after`.
        role: `write` for an output axis, `read` for an input axis, `carry` for element-wise parameters.
        space: Name of the feature space.
        before: Copies of the whole space side by side.
        after: Consecutive copies of each unit.
        local: Whether this is the input axis of a grouped convolution, whose index counts inside the group of the
            output row.
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


def fitted(rows: Iterable[Row], size: Callable[[str], int]) -> dict[Row, Row]:
    """The rows of one axis, in the order of their offsets, in a model whose spaces have other sizes.

    What no row covers is fixed, and stays between them.

    Args:
        rows: All rows of the axis.
        size: Number of units of a space in that model, by its name.

    >>> [row] = fitted([Row("fc.weight", 1, 2, 8, "read", "stem")], {"stem": 4}.get).values()
    >>> row.offset, row.length
    (2, 4)
    """
    out = {}
    shift = 0
    for row in sorted(rows, key=lambda row: row.offset):
        length = row.length if row.local else row.before * size(row.space) * row.after
        out[row] = replace(row, offset=row.offset + shift, length=length)
        shift += length - row.length
    return out


@dataclass(frozen=True)
class Probe:
    """The input or output of a module, one axis of which runs over the units of a space.

    Attributes:
        module: Path of the module.
        side: `in` for its first input, `out` for its output.
        last: Whether units run over the last axis (linear layers, channels-last models). Otherwise they run over
            axis 1 of feature maps and the last axis of tokens (3 axes).
        start: Index of the first unit: a fused q, k, v projection shows several spaces side by side.
    """

    module: str
    side: str
    last: bool = False
    start: int = 0


@dataclass(frozen=True)
class FeatureSpace:
    """`size` units that must be matched as one wherever they appear.

    A space with groups of one unit and no probe is a group axis itself, such as a table with one entry per head. It
    is permuted like the groups of the other spaces of its axis.

    Attributes:
        name: Name of the space.
        size: Number of units.
        probes: Tensors in which the space can be observed.
        groups: Number of groups (GroupNorm, grouped convolutions, heads). Units only mix inside their group.
        group_axis: Spaces with the same group axis permute their groups together; `None` without groups.
        one_to_one: Whether units of one model are never merged with each other. This holds for spaces under a layer
            norm, whose mean and variance count every unit once, and for spaces that nothing reads (queries and keys),
            whose units are only multiplied with each other.
        each: The same space in each model, if the models differ in it; the other fields are those of the model that
            the binding is of.
    """

    name: str
    size: int
    probes: tuple[Probe, ...]
    groups: int = 1
    group_axis: str | None = None
    one_to_one: bool = False
    each: tuple["FeatureSpace", ...] = ()

    def of(self, model: int) -> "FeatureSpace":
        """The space in one of the models."""
        return self.each[model] if self.each else self

    def sizes(self, models: int) -> tuple[int, ...]:
        """The number of units in each of the models."""
        return tuple(self.of(model).size for model in range(models))


@dataclass(frozen=True)
class Binding:
    """A spec bound to a model, or to several: spaces and table are then those of the widest one.

    Attributes:
        spec: The parsed spec file.
        spaces: Feature spaces by name.
        table: Which slice of which parameter belongs to which space.
        owns: Step -> the modules and parameters that it runs, in the order of the steps.
        arguments: Step -> what it receives besides the output of the step before, if anything.
        after: Step -> the space of its output; `None` where the model cannot be cut.
        classifier: Parameters whose width is the number of classes.
        unmatched: Lines of the spec that match nothing in the model.
        held: Parameter axes that are free in the model, but that the spec says it leaves alone.
    """

    spec: Spec
    spaces: dict[str, FeatureSpace]
    table: tuple[Row, ...]
    owns: dict[str, tuple[str, ...]]
    arguments: dict[str, tuple[str, ...]]
    after: dict[str, str | None]
    classifier: tuple[str, ...]
    unmatched: tuple[Line | ProbeLine, ...]
    held: frozenset[tuple[str, int]] = frozenset()

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps whose composition is the model: module paths, `call:method` or `op:name`; `()` without a chain."""
        return tuple(self.owns)

    @property
    def cuts(self) -> tuple[str, ...]:
        """Legal cuts: steps after which exactly one tensor is alive, and it belongs to a space. `()` without a chain.

        The step that writes the classes is not a cut, and neither is any step after it.
        """
        return tuple(s for s in self.steps if self.after[s] is not None)

    def of(self, model: int) -> "Binding":
        """The binding of one of the models: its own sizes and slices."""
        if not any(space.each for space in self.spaces.values()):
            return self
        spaces = {name: space.of(model) for name, space in self.spaces.items()}
        axes: dict[tuple[str, int], list[Row]] = {}
        for row in self.table:
            axes.setdefault((row.parameter, row.axis), []).append(row)
        own = {old: new for rows in axes.values() for old, new in fitted(rows, lambda s: spaces[s].size).items()}
        return replace(self, spaces=spaces, table=tuple(own[row] for row in self.table))

    @property
    def unequal(self) -> list[str]:
        """The spaces that have different numbers of units in the models."""
        return [name for name, space in self.spaces.items() if len({one.size for one in space.each}) > 1]

    def calls(self, steps: Iterable[str]) -> list[str]:
        """Steps with their arguments, as `run_steps` takes them: `layers.0(resolution=$image)`."""
        return [f"{s}({', '.join(self.arguments[s])})" if s in self.arguments else s for s in steps]

    def runs(self, model: nn.Module, size: Sequence[int]) -> list[Callable[[Tensor], Tensor]]:
        """The steps of a model as functions from the output of the step before to that of the step.

        Args:
            model: The model, which is changed if its forward is interrupted.
            size: Height and width of an image.
        """
        outline = Outline(model, self.owns) if self.spec.interrupts else None
        return step_runs(model if outline is None else outline.watch(model), self.calls(self.steps), size, outline)

    def axis(self, ndim: int) -> int:
        """The axis over which units run in a tensor of `ndim` axes between two steps: 1 or -1."""
        return -1 if ndim == 3 or self.spec.channels_last else 1

    def rows(self, parameters: Iterable[str]) -> dict[str, list[Row]]:
        """The rows of each parameter; the list is empty where all axes are fixed."""
        out: dict[str, list[Row]] = {name: [] for name in parameters}
        for row in self.table:
            if row.parameter in out:
                out[row.parameter].append(row)
        return out

    def under(self, steps: Iterable[str], names: Iterable[str]) -> list[str]:
        """The parameters or modules among `names` that the given steps run."""
        prefixes = tuple(f"{name}." for step in steps for name in self.owns[step])
        return [n for n in names if (n + ".").startswith(prefixes)]

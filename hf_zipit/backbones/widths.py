"""Models of one architecture whose layers have different widths: which widths may differ, and one binding for all."""

from collections.abc import Sequence
from dataclasses import replace

from hf_zipit.specs.spaces import Binding, FeatureSpace


def widest(bindings: Sequence[Binding]) -> int:
    """The number of the model with the most units; of several, the first."""
    return max(range(len(bindings)), key=lambda k: sum(space.size for space in bindings[k].spaces.values()))


def united(bindings: Sequence[Binding]) -> Binding:
    """The binding of the widest model, which knows the sizes of the spaces in all models.

    Args:
        bindings: one spec, bound to each model.
    """
    first = bindings[widest(bindings)]
    spaces = {}
    for name, space in first.spaces.items():
        each = tuple(binding.spaces[name] for binding in bindings)
        spaces[name] = replace(space, each=each if any(one != space for one in each) else ())
    return replace(first, spaces=spaces)


def unfit(first: Binding, other: Binding) -> str | None:
    """Why two models of different widths cannot be merged; `None` if they can.

    Units of a narrower model may join units of a wider one where nothing counts them. A layer norm does, and so do
    groups of units: attention heads, group norms and grouped convolutions.

    Args:
        first: a spec bound to one model.
        other: the same spec bound to the other one.
    """
    for name, space in first.spaces.items():
        its = other.spaces.get(name)
        if its is None or _place(space) != _place(its):
            return f"the feature space {name} is {_told(space)} and {_told(its)}"
        if space == its:
            continue
        if space.group_axis is not None:
            sizes = f"{space.size} units in {space.groups} groups and {its.size} in {its.groups}"
            return f"the feature space {name} has {sizes} ({_GROUPS}), {_WHY}"
        if space.one_to_one:
            sizes = f"{space.size} and {its.size} units"
            return f"the feature space {name} has {sizes}, which a layer norm counts (or no layer reads), {_WHY}"
    if len(first.table) != len(other.table):
        return "their layers read and write different feature spaces"
    for row, theirs in zip(first.table, other.table, strict=True):
        if replace(row, offset=0, length=0) != replace(theirs, offset=0, length=0):
            return f"{row.parameter} is divided into units in different ways"
    return None


_WHY = "and only models of equal width can be merged there"
_GROUPS = "attention heads, or groups of a norm or a convolution"


def _place(space: FeatureSpace) -> tuple[object, ...]:
    """Where a space is and what may be merged in it, whatever its width."""
    shown = [(probe.module, probe.side, probe.last) for probe in space.probes]
    return shown, space.group_axis, space.one_to_one


def _told(space: FeatureSpace | None) -> str:
    """A space in words; the names of the fields are those of `FeatureSpace`."""
    if space is None:
        return "missing"
    shown = ", ".join(f"{probe.module}.{probe.side}" for probe in space.probes)
    return f"{space.size} units (groups={space.groups}, one_to_one={space.one_to_one}, observed at {shown or 'none'})"

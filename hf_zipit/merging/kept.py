"""The feature spaces that one model keeps as wide as they were, and why."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_zipit.assembly.parents import Parents
from hf_zipit.merging.budget import HALF, free_spaces
from hf_zipit.specs.attention import attentions

HEADS = "attention heads, which keep all of their units"
NORMED = "read by layer norms, which count every unit"
UNREAD = "nothing reads their units one by one"
TIED = "tables with an entry for every attention head or other group"
FIXED = "the modules around them run only with as many units"
WIDE = "all of their units are kept at this width"


def kept_spaces(parents: Parents, spaces: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names of the spaces that are as wide as before, by the reason.

    Units of one model are merged with each other only where that does not change what a layer computes of the others.

    Args:
        parents: the one model.
        spaces: name and `width` of every space of the result.
    """
    binding = parents.binding
    free = free_spaces(parents.reference.model, binding, parents.input_size, HALF)
    heads = {name for layer in attentions(binding).values() for name in layer.spaces}
    read = {row.space for row in binding.table if row.role == "read"}
    out: dict[str, list[str]] = {}
    for name, width in ((one["name"], one["width"]) for one in spaces):
        space = binding.spaces[name]
        if width < space.size:
            continue
        if not space.probes:
            reason = TIED
        elif name in heads:
            reason = HEADS
        elif space.one_to_one:
            reason = NORMED if name in read else UNREAD
        else:
            reason = WIDE if name in free else FIXED
        out.setdefault(reason, []).append(name)
    return out

"""How an attention module is told its number of heads: by attributes such as `num_heads`, `head_dim` and `scale`."""

import math

from torch import nn

from hf_zipit.specs.attention import Attention

Attributes = dict[str, dict[str, int | float]]  # module -> attribute -> value
TOTALS = ("attn_dim", "all_head_size", "inner_dim")  # names of the number of units of all heads


def head_attributes(model: nn.Module, attention: Attention, heads: int, units: int) -> Attributes:
    """The attributes of an attention layer that change with the number of heads.

    They are found by name and value: a number of heads, the units of a head, the units of all heads, and the factor on
    the logits, which is one over the root of the units.

    Args:
        model: has the layer.
        attention: the layer.
        heads: the new number of heads.
        units: the new number of units of each head.
    """
    old = attention.heads, attention.units
    found: Attributes = {}
    for path, module in model.get_submodule(attention.module).named_modules(prefix=attention.module):
        values = {name: _changed(name, value, old, (heads, units)) for name, value in vars(module).items()}
        changed = {name: value for name, value in values.items() if value is not None}
        if changed:
            found[path] = changed
    return found


def _changed(name: str, value: object, old: tuple[int, int], new: tuple[int, int]) -> int | float | None:
    """The new value of an attribute; `None` if it does not depend on the heads."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    heads, units = old
    width = any(word in name for word in ("dim", "size", "width"))
    if isinstance(value, float):
        return new[1] ** -0.5 if "scal" in name and math.isclose(value, units**-0.5, rel_tol=1e-6) else None
    if name in TOTALS:
        return new[0] * new[1] if value == heads * units else None
    if "head" not in name:
        return None
    if width:
        return new[1] if value == units else None
    return new[0] if value == heads else None

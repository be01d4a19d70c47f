"""The model that others were fine-tuned from: which one it is, and its tensors under the names of the others."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from hf_zipit.deltas.rules import State
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.cards import common_base
from hf_zipit.recipe import PinnedSource
from hf_zipit.running import STATISTICS
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan

Base = str | Path | nn.Module | Source
POSITIONS = ("position", "pos_embed", "relative_coords", "patch")  # in names of tensors that follow the image size


def named_base(base: Base | PinnedSource | None, models: Sequence[Source]) -> Base:
    """The base that a user gave, or that the cards of all models name.

    Args:
        base: a Hub id, folder, module or opened source; `None` if the user gave none.
        models: the models, or their outlines.

    Raises:
        OptionError: none is given, and the cards name none.
    """
    given = base.ref if isinstance(base, PinnedSource) else base
    found = common_base(models) if base is None else given
    if found is None:
        raise OptionError(
            "differences need the model that these were fine-tuned from, and neither cards nor recipe name it: give "
            "--base (base), or use average, regmean or select, which need none"
        )
    return found


def merged_names(states: Sequence[State], plan: Plan) -> list[str]:
    """The names of the tensors that a rule merges: the weights of merged layers that all models have.

    Statistics of batch norms are left out. They are averaged, like what only some models have.
    """
    names = [name for name in plan.touched(states[0]) if all(name in state for state in states)]
    return [name for name in names if states[0][name].is_floating_point() and not name.endswith(STATISTICS)]


def base_state(base: Source, states: Sequence[State], names: Sequence[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a base under the names of the models, and the names of those that fine-tuning resized.

    Only embeddings of positions and patches may have another size, as a fine-tuning at another image size leaves them.

    Args:
        base: the base. Its names may have another prefix than those of the models: it need not have a classifier.
        states: the state dicts of the models.
        names: of the merged tensors.

    Raises:
        SourceError: a tensor is missing in the base, or has another shape there.
    """
    own = base.model.state_dict()
    found = _renamed(own, names)
    kinds = {_numberless(name) for name in names}
    further = [name for name in found if name not in states[0] and _numberless(name) in kinds]
    if further:
        raise SourceError(f"{base.name} is not the base of these models: it has {further[0]}, and they have not")
    found = {name: found[name] for name in names if name in found}
    resized = []
    for name in names:
        shape = states[0][name].shape
        if name in found and found[name].shape == shape:
            continue
        if name in found and any(part in name for part in POSITIONS):
            resized.append(name)
            del found[name]
            continue
        has = f"has {tuple(found[name].shape)}" if name in found else "has no such tensor"
        raise SourceError(
            f"{base.name} is not the base of these models: they have {name} with shape {tuple(shape)}, and it {has}"
        )
    return found, resized


def _renamed(own: State, names: Sequence[str]) -> dict[str, Tensor]:
    """All tensors of a base under the names of the models, of which one may have a prefix that the other lacks."""
    candidates = {("", "")}
    for name in (names[0], names[-1]) if names else ():
        candidates |= {("", key.removesuffix(name)) for key in own if key.endswith(f".{name}")}
        candidates |= {(name.removesuffix(key), "") for key in own if name.endswith(f".{key}")}

    def taken(candidate: tuple[str, str]) -> dict[str, Tensor]:
        mine, theirs = candidate
        return {mine + key.removeprefix(theirs): value for key, value in own.items() if key.startswith(theirs)}

    return max(map(taken, sorted(candidates)), key=lambda found: len(found.keys() & set(names)))


def _numberless(name: str) -> str:
    """A name without the numbers of layers."""
    return re.sub(r"\d+", "#", name)

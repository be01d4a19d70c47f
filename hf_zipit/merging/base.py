"""The model that others were fine-tuned from: which one it is, and its tensors under the names of the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.cards import common_base
from hf_zipit.sources.source import Source

Base = str | Path | nn.Module | Source
State = Mapping[str, Tensor]
STATISTICS = ("running_mean", "running_var")  # of batch norms: no weights, so they are averaged
POSITIONS = ("position", "pos_embed", "relative_coords", "patch")  # in names of tensors that follow the image size


def named_base(base: Base | None, models: Sequence[Source]) -> Base:
    """The base that a user gave, or that the cards of all models name.

    Args:
        base: a Hub id, folder, module or opened source; `None` if the user gave none.
        models: the models, or their outlines.

    Raises:
        OptionError: none is given, and the cards name none.
    """
    found = base if base is not None else common_base(models)
    if found is None:
        raise OptionError(
            "differences need the model that these were fine-tuned from, and their cards name none: give --base "
            "(base), or use average, regmean or select, which need none"
        )
    return found


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
    """The tensors with these names, where one set of names may have a prefix that the other lacks."""
    candidates = {("", "")}
    for name in (names[0], names[-1]) if names else ():
        candidates |= {("", key.removesuffix(name)) for key in own if key.endswith(f".{name}")}
        candidates |= {(name.removesuffix(key), "") for key in own if name.endswith(f".{key}")}

    def taken(candidate: tuple[str, str]) -> dict[str, Tensor]:
        mine, theirs = candidate
        keys = {name: theirs + name.removeprefix(mine) for name in names}
        return {name: own[key] for name, key in keys.items() if key in own}

    return max(map(taken, sorted(candidates)), key=len)

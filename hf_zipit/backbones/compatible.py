"""Check that models of one class can be merged: they compute the same, but for their weights and their classes."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_zipit.backbones.behaviour import as_wide, differences, matter, same_outputs, same_pixels
from hf_zipit.backbones.widths import unfit, widest
from hf_zipit.errors import SourceError, SpecError
from hf_zipit.models.resume import around
from hf_zipit.sources.source import Source
from hf_zipit.specs.attention import attentions
from hf_zipit.specs.binding import bind
from hf_zipit.specs.spaces import Binding, Row


def check_alike(sources: Sequence[Source], binding: Binding) -> list[Binding]:
    """Refuse models that compute different things in eval mode with equal weights, apart from classes and widths.

    Args:
        sources: Models of one class.
        binding: The spec bound to the first of them.

    Returns:
        The spec bound to each of them.

    Raises:
        SourceError: two models differ; the message names the first difference.
    """
    first = sources[0]
    bindings = [binding]
    for other in sources[1:]:
        pair = f"{first.name} and {other.name} cannot be merged"
        if type(first.model) is not type(other.model):
            raise SourceError(f"{pair}: one is a {type(first.model).__name__}, one a {type(other.model).__name__}")
        found = differences(first, other, binding.classifier)
        _check_heads(first, other, binding)
        try:
            bindings.append(_bound(first, other, binding))
        except SpecError as error:
            configured = [text for text in matter(found) if text.startswith("their configuration")]
            raise SourceError(f"{pair}: {'; '.join([*configured[:1], str(error)])}") from None
        if found and not _widths_differ(binding, bindings[-1]) and _compute_differently(first, other, found):
            raise SourceError(f"{pair}: {found[0]}")
        check_preprocessing(first, other)
    _check_widths(sources, bindings)
    return bindings


def _compute_differently(first: Source, other: Source, found: list[str]) -> bool:
    """Whether settings that differ change the outputs; of models without weights, whether they may."""
    if any(value.is_meta for source in (first, other) for value in source.model.state_dict().values()):
        return bool(matter(found))
    return not same_outputs(first, other)


def check_preprocessing(first: Source, other: Source) -> None:
    """Refuse models that make different pixels of an image.

    Raises:
        SourceError: the message names the first setting that differs.
    """
    for key in {**first.preprocessing, **other.preprocessing}:
        ours = first.preprocessing.get(key)
        theirs = other.preprocessing.get(key)
        if ours != theirs and not (key != "input_size" and same_pixels(first, other)):
            raise preprocessing_error(first, other, key, ours, theirs)


def preprocessing_error(first: Source, other: Source, key: str, ours: Any, theirs: Any) -> SourceError:
    """The error for two models whose images are preprocessed differently.

    Args:
        first: A model.
        other: Another model.
        key: The setting that differs.
        ours: Its value for `first`.
        theirs: Its value for `other`.
    """
    if key == "input_size":
        ours = _pixels(ours)
        theirs = _pixels(theirs)
    return SourceError(
        f"{first.name} and {other.name} cannot be merged: their preprocessing differs in {key}: {ours} and {theirs}; "
        "if both can read the same images, copy the settings of one model into the folder of the other "
        "(pretrained_cfg in config.json, or preprocessor_config.json)"
    )


def _pixels(size: Sequence[float]) -> str:
    """The height and width of an input size, for messages."""
    return f"{int(size[1])} x {int(size[2])}"


def _bound(first: Source, other: Source, binding: Binding) -> Binding:
    """The spec of a model, bound to another one with the same layers, which may have other widths.

    Raises:
        SpecError: the message names the first difference.
    """
    a = first.model.state_dict()
    b = other.model.state_dict()
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            raise SpecError(_missing(name, *((first, other) if name not in a else (other, first))))
        if a[name].ndim != b[name].ndim:
            raise SpecError(_shapes(name, a, b))
    own = bind(binding.spec, other.model)
    reason = unfit(binding, own)
    if reason is not None:
        raise SpecError(reason)
    ours, theirs = binding.rows(a), own.rows(b)
    for name in a:
        if name not in binding.classifier and _fixed(a[name], ours[name]) != _fixed(b[name], theirs[name]):
            raise SpecError(_shapes(name, a, b))
    return own


def _missing(name: str, lacks: Source, has: Source) -> str:
    """The message for a parameter that one model has and the other lacks, with the block that it is in."""
    modules = dict(lacks.model.named_modules())
    block = next((path for path in around(name) if path not in modules), None)
    said = f"{has.name} has a parameter {name}, {lacks.name} has none"
    if block is None:
        return said
    return f"{said}, as it has no block {block}; models may differ in width, but need the same blocks"


def _shapes(name: str, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    return f"{name} has shape {list(a[name].shape)} and {list(b[name].shape)}"


def _fixed(value: Tensor, rows: Sequence[Row]) -> list[int]:
    """For each axis of a parameter, how much of it belongs to no space."""
    return [size - sum(row.length for row in rows if row.axis == axis) for axis, size in enumerate(value.shape)]


def _widths_differ(one: Binding, other: Binding) -> bool:
    return any(other.spaces[name].size != space.size for name, space in one.spaces.items())


def _check_widths(sources: Sequence[Source], bindings: Sequence[Binding]) -> None:
    """Refuse models of different widths that compute different things, or one of which is a merge.

    Raises:
        SourceError: the message names a difference, or the merge.
    """
    number = widest(bindings)
    first = sources[number]
    for other, binding in zip(sources, bindings, strict=True):
        if not _widths_differ(bindings[number], binding):
            continue
        pair = f"{first.name} and {other.name}, which have different widths, cannot be merged"
        merge = next((one.name for one in (first, other) if one.trunk is not None or one.branches), None)
        if merge is not None:
            raise SourceError(f"{pair}: {merge} is a merge itself; merge all models at once")
        if not same_outputs(other, first):
            twin = replace(first, model=as_wide(copy.deepcopy(first.model), other.model.state_dict()))
            found = [text for text in differences(twin, other, binding.classifier) if text.startswith("the module")]
            reason = found[0] if found else "they compute different things at equal width and with equal weights"
            raise SourceError(f"{pair}: {reason}")


def _check_heads(first: Source, other: Source, binding: Binding) -> None:
    """Refuse a merge that keeps the heads of all its parents beside a model with another number of heads.

    Raises:
        SourceError: the message says how many heads there are, and what to do about it.
    """
    merges = [source.name for source in (first, other) if source.branches]
    theirs = attentions(bind(binding.spec, other.model)) if merges else {}
    for axis, ours in attentions(binding).items():
        its = theirs.get(axis)
        if its is not None and its.heads != ours.heads:
            raise SourceError(
                f"{first.name} and {other.name} cannot be merged: {ours.module} has {ours.heads} heads of {ours.units} "
                f"units in one and {its.heads} of {its.units} in the other; {merges[0]} is a merge that keeps the "
                "heads of all its parents. Merge all models at once, or make the first merge with heads pair"
            )

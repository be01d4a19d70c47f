"""Check that models of one class can be merged: they compute the same, but for their weights and their classes."""

from collections.abc import Sequence
from typing import Any

from hf_zipit.backbones.behaviour import differences, matter, same_outputs, same_pixels
from hf_zipit.errors import SourceError
from hf_zipit.sources.source import Source
from hf_zipit.specs.attention import attentions
from hf_zipit.specs.binding import bind
from hf_zipit.specs.spaces import Binding


def check_alike(sources: Sequence[Source], binding: Binding) -> None:
    """Refuse models that compute different things in eval mode with equal weights, apart from their classes.

    Args:
        sources: Models of one class.
        binding: The spec bound to the first of them.

    Raises:
        SourceError: two models differ; the message names the first difference.
    """
    first = sources[0]
    for other in sources[1:]:
        pair = f"{first.name} and {other.name} cannot be merged"
        if type(first.model) is not type(other.model):
            raise SourceError(f"{pair}: one is a {type(first.model).__name__}, one a {type(other.model).__name__}")
        found = differences(first, other, binding.classifier)
        _check_heads(first, other, binding)
        reason = _parameters_differ(first, other, binding) or _spaces_differ(other, binding)
        if reason is not None:
            configured = [text for text in matter(found) if text.startswith("their configuration")]
            raise SourceError(f"{pair}: {configured[0] if configured else reason}")
        if found and _compute_differently(first, other, binding, found):
            raise SourceError(f"{pair}: {found[0]}")
        check_preprocessing(first, other)


def _compute_differently(first: Source, other: Source, binding: Binding, found: list[str]) -> bool:
    """Whether settings that differ change the outputs; of models without weights, whether they may."""
    if any(value.is_meta for source in (first, other) for value in source.model.state_dict().values()):
        return bool(matter(found))
    return not same_outputs(first, other, binding.classifier)


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


def _parameters_differ(first: Source, other: Source, binding: Binding) -> str | None:
    a = first.model.state_dict()
    b = other.model.state_dict()
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lacks, has = (first, other) if name not in a else (other, first)
            return f"{has.name} has a parameter {name}, {lacks.name} has none"
        if a[name].shape != b[name].shape and name not in binding.classifier:
            return f"{name} has shape {list(a[name].shape)} and {list(b[name].shape)}"
    return None


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


def _spaces_differ(other: Source, binding: Binding) -> str | None:
    spaces = bind(binding.spec, other.model).spaces
    for name, space in binding.spaces.items():
        if spaces.get(name) != space:
            return f"the feature space {name} is {space} and {spaces.get(name)}"
    return None

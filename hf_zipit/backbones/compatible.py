"""Check that models of one class can be merged: everything but their classes must be equal."""

from collections.abc import Sequence
from typing import Any

from hf_zipit.errors import SourceError
from hf_zipit.sources.source import Source
from hf_zipit.specs.binding import bind
from hf_zipit.specs.spaces import Binding


def check_alike(sources: Sequence[Source], binding: Binding) -> None:
    """Refuse models that differ in anything but their classes.

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
        _check_configuration(first, other, pair)
        _check_parameters(first, other, binding, pair)
        _check_modules(first, other, binding, pair)
        _check_spaces(other, binding, pair)
        for key in {**first.preprocessing, **other.preprocessing}:
            ours = first.preprocessing.get(key)
            theirs = other.preprocessing.get(key)
            if ours != theirs:
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


def _check_configuration(first: Source, other: Source, pair: str) -> None:
    a = first.backbone.get("config", {})
    b = other.backbone.get("config", {})
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            raise SourceError(f"{pair}: their configuration differs in {key}: {a.get(key)} and {b.get(key)}")


def _check_parameters(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a = first.model.state_dict()
    b = other.model.state_dict()
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lacks, has = (first, other) if name not in a else (other, first)
            raise SourceError(f"{pair}: {has.name} has a parameter {name}, {lacks.name} has none")
        if a[name].shape != b[name].shape and name not in binding.classifier:
            raise SourceError(f"{pair}: {name} has shape {list(a[name].shape)} and {list(b[name].shape)}")


def _check_modules(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a = dict(first.model.named_modules())
    b = dict(other.model.named_modules())
    classifiers = {name.rpartition(".")[0] for name in binding.classifier}
    for path in [*a, *(p for p in b if p not in a)]:
        ours, theirs = (f"{type(m[path]).__name__}({m[path].extra_repr()})" if path in m else "absent" for m in (a, b))
        if ours != theirs and path not in classifiers:
            raise SourceError(f"{pair}: the {f'module {path}' if path else 'model'} is {ours} and {theirs}")


def _check_spaces(other: Source, binding: Binding, pair: str) -> None:
    spaces = bind(binding.spec, other.model).spaces
    for name, space in binding.spaces.items():
        if spaces.get(name) != space:
            raise SourceError(f"{pair}: the feature space {name} is {space} and {spaces.get(name)}")

"""A merge as a source of another merge.

A merged model is its trunk and a branch for each copy of the layers behind it. Merged again, the trunk is matched and
averaged like any model's, once, and the branches are carried over:

* a full merge, whose branches are classifiers on merged units, is a plain model with the classes of all its tasks: it
  can be merged up to any layer, and its own layers behind the cut stay shared by its tasks;
* one that was cut has layers of each task behind its trunk, which read the trunk through a gather. It can be merged
  again up to the same cut; the new gather after the old one is one gather.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.models.steps import step_name
from hf_zipit.sources.source import Source
from hf_zipit.specs.binding import bind
from hf_zipit.specs.cuts import channel_axis
from hf_zipit.specs.spaces import Binding, Probe


def observed_within(binding: Binding, source: Source) -> Binding:
    """The binding with every space observed in the trunk of a merge: what lies behind it belongs to its tasks.

    Raises:
        SourceError: the end of the trunk cannot be observed.
    """
    trunk = source.trunk or ()
    if binding.steps[: len(trunk)] != trunk:
        raise SourceError(f"{source.name} was merged along other steps ({', '.join(trunk)}) than its spec has now")
    last, spaces = trunk[-1], dict(binding.spaces)
    for name, space in binding.spaces.items():
        inside = tuple(probe for probe in space.probes if binding.under(trunk, [probe.module]))
        if inside or name != binding.after[last]:
            spaces[name] = replace(space, probes=inside)
            continue
        if ":" in step_name(last):
            raise SourceError(f"{source.name}: what leaves its trunk after {last} cannot be observed")
        tokens = channel_axis(source.model, binding, len(trunk), source.input_size) == -1
        spaces[name] = replace(space, probes=(Probe(last, "out", tokens),))
    return replace(binding, spaces=spaces)


def check_cut(sources: Sequence[Source], trunk: tuple[str, ...], calibrate: str) -> None:
    """Refuse a trunk that ends elsewhere than that of a source whose tasks have layers of their own.

    Raises:
        OptionError: another cut, or another calibration, is needed, and named.
    """
    for source in sources:
        if source.trunk is not None and source.trunk != trunk:
            need = f"the same cut ({source.cut})" if source.cut else "no cut"
            raise OptionError(
                f"{source.name} is a merge up to {source.trunk[-1]}; what lies behind belongs to its tasks, so it can "
                f"only be merged again with {need}"
            )
        if source.trunk is not None and calibrate == "repair":
            raise OptionError(
                f"calibrate is 'repair': it compares with whole parents, but {source.name} is a merge with layers for "
                "each task; use batchnorm, refit or none"
            )


def check_alike(sources: Sequence[Source], binding: Binding) -> None:
    """Refuse models that differ in anything but their classes, naming the first difference.

    Raises:
        SourceError: a parameter, a module or the preprocessing differs.
    """
    first = sources[0]
    for other in sources[1:]:
        pair = f"{first.name} and {other.name} cannot be merged"
        if type(first.model) is not type(other.model):
            raise SourceError(f"{pair}: one is a {type(first.model).__name__}, one a {type(other.model).__name__}")
        _same_settings(first.backbone.get("config", {}), other.backbone.get("config", {}), pair, "configuration")
        _same_parameters(first, other, binding, pair)
        _same_modules(first, other, binding, pair)
        spaces = bind(binding.spec, other.model).spaces
        for name, space in binding.spaces.items():
            if spaces.get(name) != space:
                raise SourceError(f"{pair}: the feature space {name} is {space} and {spaces.get(name)}")
        for key in {**first.preprocessing, **other.preprocessing}:
            ours, theirs = first.preprocessing.get(key), other.preprocessing.get(key)
            if ours != theirs:
                raise differ(first, other, key, ours, theirs)


def differ(first: Source, other: Source, key: str, ours: Any, theirs: Any) -> SourceError:
    """What to say of two models that are made for differently preprocessed images."""
    if key == "input_size":
        ours, theirs = (f"{int(size[1])} x {int(size[2])}" for size in (ours, theirs))
    return SourceError(
        f"{first.name} and {other.name} cannot be merged: their preprocessing differs in {key}: {ours} and {theirs}; "
        "where a model takes the other's images, give its folder the other's settings (pretrained_cfg in config.json, "
        "or preprocessor_config.json)"
    )


def _same_settings(a: dict[str, Any], b: dict[str, Any], pair: str, kind: str) -> None:
    for key in {**a, **b}:
        if a.get(key) != b.get(key):
            raise SourceError(f"{pair}: their {kind} differs in {key}: {a.get(key)} and {b.get(key)}")


def _same_parameters(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a, b = first.model.state_dict(), other.model.state_dict()
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lacks, has = (first, other) if name not in a else (other, first)
            raise SourceError(f"{pair}: {has.name} has a parameter {name}, {lacks.name} has none")
        if a[name].shape != b[name].shape and name not in binding.classifier:
            raise SourceError(f"{pair}: {name} has shape {list(a[name].shape)} and {list(b[name].shape)}")


def _same_modules(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a, b = dict(first.model.named_modules()), dict(other.model.named_modules())
    classifiers = {name.rpartition(".")[0] for name in binding.classifier}
    for path in [*a, *(p for p in b if p not in a)]:
        shown = [f"{type(m[path]).__name__}({m[path].extra_repr()})" if path in m else "absent" for m in (a, b)]
        if shown[0] != shown[1] and path not in classifiers:
            raise SourceError(f"{pair}: the module {path or 'itself'} is {shown[0]} and {shown[1]}")

"""Source models: Hub ids, local folders or loaded modules -> `Source`, and whether they can be merged."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_zipit import spec as specs
from hf_zipit.access import NOTHING, Access
from hf_zipit.binding import bind
from hf_zipit.checkpoint import read_json
from hf_zipit.checks import check_spec
from hf_zipit.errors import SourceError, SpecError
from hf_zipit.grammar import ProbeLine, Spec
from hf_zipit.hub.download import HUB_ID, fetch, no_model
from hf_zipit.libraries import from_module, timm_folder, transformers_folder, untrained
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.remerge import merged_folder, merged_source
from hf_zipit.source import Source
from hf_zipit.spaces import Binding
from hf_zipit.tracing.check import describe, tally
from hf_zipit.tracing.tracer import trace
from hf_zipit.whole_models import from_whole_module, is_whole, whole_folder

_log = logging.getLogger("hf_zipit")


def load(
    source: str | Path | nn.Module | Source, model_args: dict[str, Any] | None = None, access: Access = NOTHING
) -> Source:
    """Load one model.

    Args:
        source: a Hub id (`user/name`, `user/name@revision`), a folder with `config.json` and `model.safetensors`, or
            a timm module made by `timm.create_model`. It may itself be a merge. A `Source` is returned as it is.
        model_args: the keyword arguments a module was created with, apart from the number of classes; timm does not
            keep them, and a saved merge needs them.
        access: what the user allows: an access token of the Hub, code that comes with models, pickled weights.

    Raises:
        SourceError: it is no model, its weights are missing, damaged, pickled or do not fit, its kind is unknown, or
            the Hub does not give it.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, ZipItForImageClassification):
        return merged_source(source, "merged", {"id": None, "folder": None, "revision": None, "sha256": None})
    if isinstance(source, nn.Module):
        return from_whole_module(source) or from_module(source, model_args)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, {"id": None, "folder": path.resolve().name, "revision": None}, access)
    if path.exists():
        raise SourceError(f"{source} is a file: a model is a folder with config.json and model.safetensors")
    if HUB_ID.fullmatch(str(source)):
        got = fetch(str(source), access)
        origin = {"id": got.name, "folder": None, "revision": got.revision}
        return _from_folder(got.folder, origin, access, got.name.partition("/")[2])
    raise SourceError(no_model(source))


def load_or_build(model: str, access: Access = NOTHING) -> Source:
    """A model to look at: as `load`, or a timm architecture by name with random weights.

    Raises:
        SourceError: it is neither.
    """
    source = load(model, access=access) if Path(model).exists() or "/" in model else untrained(model)
    if "input_size" in source.preprocessing:
        return source
    _log.warning("%s does not say how large its images are: it is looked at with 224 x 224 pixels", source.name)
    return replace(source, preprocessing={**source.preprocessing, "input_size": (3, 224, 224)})


def find_spec(source: Source, spec: str | Path | None = None, *, checked: bool = True) -> Binding:
    """Bind the family spec of a model, or the spec file given by the user.

    Unless told otherwise, a user's spec is checked, and a shipped one for an architecture that it does not name under
    `check:`. A model that no shipped spec describes is traced.

    Raises:
        SpecError: the spec does not describe the model.
        TraceError: there is no spec for its class, and it cannot be traced.
    """
    if spec is not None:
        binding = _bind_own(specs.read(spec), source)
        if checked:
            check_spec(source.model, binding, source.input_size)
        return binding
    classes = [f"{c.__module__}.{c.__qualname__}" for c in type(source.model).__mro__]
    known = specs.list_specs()
    for candidate in known:
        if specs.matches(candidate, classes):
            try:
                binding = bind(candidate, source.model)
                if checked and not _reviewed(source, candidate):
                    check_spec(source.model, binding, source.input_size)
                return binding
            except SpecError as error:
                _log.warning("%s", error)
                break
    return bind(specs.parse(trace_source(source), "traced"), source.model)


def _reviewed(source: Source, spec: Spec) -> bool:
    """Whether the spec's own tests cover this architecture; without weights nothing can be checked."""
    architecture = str(source.backbone.get("architecture"))
    known = architecture in spec.check or f"transformers.{architecture}" in spec.check
    return known or any(p.is_meta for p in source.model.parameters())


def _bind_own(spec: Spec, source: Source) -> Binding:
    """Bind a user's spec. Only a shipped family may have lines for variants that this model is not."""
    binding = bind(spec, source.model)
    if binding.unmatched and spec.family not in {known.family for known in specs.list_specs()}:
        line = binding.unmatched[0]
        target = line.module if isinstance(line, ProbeLine) else line.target
        raise SpecError(
            f"{spec.file}:{line.number}: '{target}' matches nothing in {source.name}: remove the line, or correct it"
        )
    return binding


def trace_source(source: Source) -> str:
    """The text of a spec for a model that no spec describes, traced from one forward pass and checked; the log tells.

    Raises:
        TraceError: the model cannot be traced.
        SpecError: the traced spec fails a check.
    """
    (text, held), kind = traced(source), type(source.model).__name__
    _log.warning("no spec describes this %s: its feature spaces were traced and checked (%s)", kind, held)
    return text


def traced(source: Source) -> tuple[str, str]:
    """The text of a spec for a model of any class, and how much of the model it holds fixed and why.

    Raises:
        TraceError, SpecError: as for `trace_source`.
    """
    pixels = torch.randn(1, *source.input_size, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(source.model).float().eval()
    found = trace(model, pixels)
    text = describe(model, pixels, f"traced-{type(model).__name__.lower()}", found)
    reasons = ", ".join(reason for reason, _ in tally(found).most_common(3))
    return text, f"{100 * found.share:.1f} % of places held fixed{': ' if reasons else ''}{reasons}"


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


def _from_folder(folder: Path, origin: dict[str, Any], access: Access, name: str | None = None) -> Source:
    name = name or folder.resolve().name
    config = read_json(folder / "config.json")
    if config.get("model_type") == "zipit":
        return merged_folder(folder, name, origin)
    if config.get("model_type") == "zipit-model":
        raise SourceError(f"{folder} is a merge of models of several classes: merge its sources instead")
    if isinstance(config.get("architecture"), str):
        return timm_folder(folder, config, name, origin, access)
    if is_whole(config):
        return whole_folder(folder, config, name, origin, access)
    if config.get("model_type"):
        return transformers_folder(folder, config, name, origin, access)
    raise SourceError(f"{folder}/config.json names neither a timm architecture nor a transformers model_type")

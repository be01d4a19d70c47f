"""Find the backbone that models of several classes share: where it is in each model, and how far it can be merged."""

import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hf_zipit.backbones.behaviour import same_boxes, same_pixels, same_values
from hf_zipit.backbones.compatible import preprocessing_error
from hf_zipit.backbones.differences import first_divergent_step, limit_of, reason_of, view_of
from hf_zipit.backbones.dtypes import in_one_dtype
from hf_zipit.backbones.prefix import Prefix, find_prefix
from hf_zipit.backbones.restrict import Outputs, renamed_weights, restricted
from hf_zipit.backbones.traced import trace_prefix
from hf_zipit.errors import SourceError, SpecError, TraceError
from hf_zipit.find_spec import trace_source
from hf_zipit.models.resume import Steps
from hf_zipit.sources.pixels import per_channel
from hf_zipit.sources.source import DETECTION, Source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.grammar import Spec
from hf_zipit.specs.spaces import Binding

PROBED = 256  # height and width of the images on which detectors are traced, at most
_log = logging.getLogger("hf_zipit")


@dataclass(frozen=True)
class Shared:
    """Several models, and the steps that all of them have in common.

    Attributes:
        wholes: The models as they were given.
        sources: The same models, reduced to the shared steps under the names of `binding`; `network` is the whole
            model.
        binding: A spec bound to the shared steps.
        prefixes: The prefix of each model. The first steps of `prefixes[k]` are the shared ones, under the names that
            they have in model k.
        outputs: Step -> the feature space of its output, and the axis of its units. Steps whose output is no single
            space are missing.
        reference: Number of the model that the names in `binding` come from.
        path: Path of the backbone in the reference model; `""` if that model is itself the backbone.
        limit: The reason why no further step can be merged, for messages.
    """

    wholes: list[Source]
    sources: list[Source]
    binding: Binding
    prefixes: list[Prefix]
    outputs: Outputs
    reference: int
    path: str
    limit: str

    def taps(self, model: int, depth: int) -> list[tuple[int, str, int, int]]:
        """The outputs of the trunk that the rest of a model reads.

        Args:
            model: Number of the model.
            depth: Number of steps in the trunk.

        Returns:
            (number of the step, space, axis of its units, number of units) of each output.
        """
        found = []
        for number in self.prefixes[model].taps(depth):
            space, axis = self.outputs[self.binding.steps[number]]
            found.append((number, space, axis, self.binding.spaces[space].size))
        return found


class _Backbone(NamedTuple):
    """A backbone that a spec describes: the number of its model, its path in that model, and the bound spec.

    Of a trace that has followed the first steps only, `depth` is their number.
    """

    reference: int
    path: str
    binding: Binding
    depth: int | None = None


def share(sources: Sequence[Source], spec: str | Path | None = None, backbone: str | None = None) -> Shared:
    """Find the steps, from the image onwards, that models of any classes have in common.

    Args:
        sources: One or more models.
        spec: A spec file for the backbone; by default a shipped one, or else a trace.
        backbone: Path of the backbone in the models that have a module there.

    Raises:
        SourceError: the models have nothing in common; the message names the first difference.
        SpecError: no spec describes the backbone.

    >>> share([load("user/classifier"), load("user/segmenter")]).binding.cuts  # doctest: +SKIP
    ('conv1', 'bn1', 'act1', 'maxpool', 'layer1.0')
    """
    given = in_one_dtype(_with_input_sizes(sources))
    _check_boxes(given)
    small = [_smaller(source) for source in given]
    if all(source.kind == DETECTION for source in given) and small != given:
        with suppress(TraceError):  # some run on images of one size only
            found = _share(small, spec, backbone)
            _check_preprocessing(given)
            kept = [replace(a, preprocessing=b.preprocessing) for a, b in zip(found.sources, given, strict=True)]
            return replace(found, wholes=given, sources=kept)
    return _share(given, spec, backbone)


def _smaller(source: Source) -> Source:
    """A detector with smaller images: which layers it has does not depend on their size, and 800 x 800 take long."""
    channels, *sides = source.input_size
    size = (channels, *(min(side, PROBED) for side in sides))
    return (
        source
        if size == source.input_size
        else replace(source, preprocessing={**source.preprocessing, "input_size": size})
    )


def _share(sources: list[Source], spec: str | Path | None, backbone: str | None) -> Shared:
    """As `share`, for models that state how large their images are."""
    found = _find_backbone(sources, spec, backbone)
    first = sources[found.reference]
    methods = [step.removeprefix("call:") for step in found.binding.steps if step.startswith("call:")]
    methods = [] if found.binding.spec.interrupts else methods
    own = find_prefix(first.model, _blank(first), inside=found.path, methods=methods)
    steps = _before_classifier(own, found)
    like = own.holds[: len(steps)]
    prefixes = [
        find_prefix(source.model, _blank(source), _within(source, backbone), like, methods) for source in sources
    ]
    prefixes[found.reference] = own
    depth = min(len(steps), *(len(prefix.steps) for prefix in prefixes))
    limit = limit_of(sources, prefixes, steps, found.reference, depth)
    start = len(found.path) + 1 if found.path else 0
    names = [step[start:] for step in steps[:depth]]
    if names:  # models without a common step are refused below, for a better reason than their preprocessing
        _check_preprocessing(sources)
    views = [view_of(source, prefix, names, first, own) for source, prefix in zip(sources, prefixes, strict=True)]
    for number, source in enumerate(sources):
        step = first_divergent_step(views[found.reference], views[number], source.input_size)
        if step is not None and step < len(names):
            names = names[:step]
            limit = reason_of(first, source, steps[step], prefixes[number].steps[step])
    if not names:
        kinds = ", ".join(f"{source.name} is a {type(source.model).__name__}" for source in sources)
        raise SourceError(f"{_names(sources)} have no backbone in common: {limit} ({kinds})")
    views = [Steps({name: view.get_submodule(name) for name in names}) for view in views]
    return _shared(sources, views, prefixes, found, limit)


def _names(sources: Sequence[Source]) -> str:
    return ", ".join(source.name for source in sources)


def _blank(source: Source) -> Tensor:
    """A black image of the size that a model reads, `(1, channels, height, width)`."""
    return torch.zeros(1, *source.input_size)


def _within(source: Source, backbone: str | None) -> str:
    """The path of the backbone if the model has a module there; else the whole model is searched."""
    return backbone if backbone and backbone in dict(source.model.named_modules()) else ""


def _before_classifier(own: Prefix, found: _Backbone) -> list[str]:
    """The steps of the reference model's prefix up to its classifier."""
    owners = (name.rpartition(".")[0] for name in found.binding.classifier)
    classifiers = {".".join(part for part in (found.path, owner) if part) for owner in owners}
    return list(itertools.takewhile(lambda step: step not in classifiers, own.steps[: found.depth]))


def _with_input_sizes(sources: Sequence[Source]) -> list[Source]:
    """The sources, each with an input size: its own, or else that of the first model that states one."""
    stated = [s for s in sources if s.preprocessing.get("input_size")]
    if not stated:
        raise SourceError("none of the models says how large its images are: pass one model with its preprocessing")
    default = stated[0].input_size
    return [replace(s, preprocessing={"input_size": default, **s.preprocessing}) for s in sources]


def _check_preprocessing(sources: Sequence[Source]) -> None:
    """Refuse models that state different preprocessing; what a model does not state is not compared."""
    for other in sources[1:]:
        for key in ("input_size", "mean", "std"):
            ours = _stated(sources[0], key)
            theirs = _stated(other, key)
            if ours is not None and theirs is not None and ours != theirs:
                raise preprocessing_error(sources[0], other, key, ours, theirs)
        if not same_values(sources[0], other):
            raise SourceError(
                f"{sources[0].name} and {other.name} cannot be merged: their preprocessing gives a pixel different "
                "values (rescaling or normalisation); if both can read the same images, copy preprocessor_config.json "
                "of one into the folder of the other"
            )
        if None not in (sources[0].transform, other.transform) and not same_pixels(sources[0], other):
            _log.warning(
                "%s and %s resize or cut images differently; the merge reads them all as %s does (the model named "
                "first decides)",
                *(sources[0].name, other.name, next(s.name for s in sources if s.transform)),
            )


def _check_boxes(sources: Sequence[Source]) -> None:
    """Refuse detectors whose outputs become boxes in different ways: the merge has one image processor for all."""
    found = [source for source in sources if source.kind == DETECTION]
    for first, other in itertools.pairwise(found):
        if not same_boxes(first, other):
            kinds = [type(source.processor).__name__ for source in (first, other)]
            raise SourceError(
                f"{first.name} and {other.name} cannot be merged: their image processors make boxes of outputs in "
                f"different ways ({kinds[0]} and {kinds[1]}), and a saved merge has one for all tasks. Merge detectors "
                "of one kind; or pass the models in memory, without their processors, and make the boxes of each task "
                "with its own"
            )


def _stated(source: Source, key: str) -> tuple[float, ...] | None:
    """The rounded values of a preprocessing setting, under timm's or transformers' name for it."""
    value = source.preprocessing.get(key, source.preprocessing.get(f"image_{key}"))
    values = None if value is None else per_channel(value, source.input_size[0]) or value
    return None if values is None else tuple(round(float(x), 4) for x in values)


def _find_backbone(sources: Sequence[Source], spec: str | Path | None, backbone: str | None) -> _Backbone:
    """The first module of the models that a spec describes.

    If there is none, the first model that does more than extract features is traced.
    """
    known = specs.list_specs() if spec is None else [specs.read(spec)]
    if backbone is not None and not any(backbone in dict(source.model.named_modules()) for source in sources):
        raise SourceError(f"{_names(sources)} have no module '{backbone}', which was named as their backbone")
    for number, source in enumerate(sources):
        for path, module in source.model.named_modules():
            binding = _described(module, known) if backbone in (None, path) else None
            if binding is not None:
                return _Backbone(number, path, binding)
    number = next((i for i, s in enumerate(sources) if s.kind != "image-feature-extraction"), 0)
    first = sources[number]
    if first.kind == DETECTION and (spec is None or specs.matches(known[0], _classes(first.model))):
        prefix = find_prefix(first.model, _blank(first))
        binding, depth = trace_prefix(first, prefix, None if spec is None else known[0])
        return _Backbone(number, "", binding, depth)
    if spec is not None:
        raise SpecError(f"{spec} describes no module of {_names(sources)}")
    traced = specs.parse(trace_source(first), "traced")
    return _Backbone(number, "", bind(traced, first.model))


def _described(module: nn.Module, known: Sequence[Spec]) -> Binding | None:
    """The first spec for the class of a module that can be bound to it."""
    for spec in known:
        if specs.matches(spec, _classes(module)):
            try:
                return bind(spec, module)
            except SpecError:
                continue
    return None


def _classes(module: nn.Module) -> list[str]:
    """The qualified names of the class of a module, and of its base classes."""
    return [f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__]


def _shared(
    sources: list[Source], views: Sequence[Steps], prefixes: list[Prefix], found: _Backbone, limit: str
) -> Shared:
    """Bind the spec to the shared steps.

    Args:
        sources: The models as they were given.
        views: The shared steps of each model, under the same names.
        prefixes: The prefix of each model.
        found: The backbone that the spec describes.
        limit: The reason why no further step can be merged.
    """
    first = sources[found.reference]
    view = views[found.reference]
    renamed = renamed_weights(first.model, prefixes[found.reference], found.path)
    binding, outputs = restricted(found.binding, view, renamed, prefixes, first.input_size)
    if not binding.cuts:
        raise SourceError(f"{_names(sources)} cannot be cut anywhere: {limit}")
    kept = [replace(source, model=view, network=source.model) for source, view in zip(sources, views, strict=True)]
    return Shared(sources, kept, binding, prefixes, outputs, found.reference, found.path, limit)

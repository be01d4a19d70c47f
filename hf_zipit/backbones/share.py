"""Models of several classes that hold one backbone: where it lies in each, and how far they can be merged."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hf_zipit.backbones.compatible import differ
from hf_zipit.backbones.differences import computes_otherwise, limit_of, reason_of, view_of
from hf_zipit.backbones.prefix import Opening, opening
from hf_zipit.costs import count_flops
from hf_zipit.errors import OptionError, SourceError, SpecError
from hf_zipit.find_spec import trace_source
from hf_zipit.models.resume import Steps, method_of, tensor_of
from hf_zipit.sources.source import Source
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.specs.cuts import Cut, resolve_cut
from hf_zipit.specs.spaces import Binding, FeatureSpace, Probe
from hf_zipit.transform.permute import TOLERANCE, permuted, random_labels, randomise


@dataclass(frozen=True)
class Shared:
    """Several models up to where they are alike.

    `wholes` are the models as they were given; `sources` hold only the steps that they share, all under the names of
    `binding`. `openings[k].steps` are the same steps under the names of model k. `shown` says which space each step's
    output shows, and along which axis. `path` is where the backbone lies in model `reference`, which gave the names;
    `limit` says why no more can be merged.
    """

    wholes: list[Source]
    sources: list[Source]
    binding: Binding
    openings: list[Opening]
    shown: dict[str, tuple[str, int]]
    reference: int
    path: str
    limit: str

    def taps(self, model: int, depth: int) -> list[tuple[int, str, int, int]]:
        """(step, space, axis, size) of every trunk output that the rest of a model reads."""
        found = [(i, *self.shown[self.binding.steps[i]]) for i in self.openings[model].taps(depth)]
        return [(i, space, axis, self.binding.spaces[space].size) for i, space, axis in found]

    def depth(self, cut: str | None) -> int:
        """Number of merged steps for a named cut; the last legal one by default.

        Raises:
            OptionError: unknown cut, or one that lies behind the first difference; the message says which it is.
        """
        try:
            return resolve_cut(self.binding, cut)
        except OptionError as error:
            raise OptionError(f"{error}. No more can be merged: {self.limit}") from None


@torch.no_grad()
def costs_around(shared: Shared, model: int = 0) -> list[Cut]:
    """What every legal cut of one of the models costs; `space` names the space of every tensor that is read behind it.

    >>> [cut.space for cut in costs_around(share([load("user/segmenter")]))][-1]  # doctest: +SKIP
    'stem + layer1.0.out + layer2.0.out + layer3.0.out + layer4.0.out'
    """
    whole, size = shared.wholes[model], shared.sources[model].input_size
    flops, parameters = count_flops(whole.model, size), sum(p.numel() for p in whole.model.parameters())
    view: Any = copy.deepcopy(shared.sources[model].model).to("meta").eval()
    value, done, held, cuts = torch.empty(1, *size, device="meta"), 0, 0, []
    for depth, step in enumerate(shared.binding.steps, 1):
        part = view.get_submodule(step)
        with FlopCounterMode(display=False) as counter:
            value, _ = tensor_of(part(value))
        done, held = done + counter.get_total_flops(), held + sum(p.numel() for p in part.parameters())
        if shared.binding.after[step] is not None:
            spaces = dict.fromkeys(space for _, space, _, _ in shared.taps(model, depth))
            cuts.append(Cut(step, " + ".join(spaces), done, flops, held, parameters))
    return cuts


def are_mixed(sources: Sequence[Source]) -> bool:
    """Whether models have to be merged as backbones inside other models: not all are classifiers of one class."""
    classes = {type(source.model) for source in sources}
    return len(classes) > 1 or any(source.kind != "image-classification" for source in sources)


def share(sources: Sequence[Source], spec: str | Path | None = None, backbone: str | None = None) -> Shared:
    """Find what models of any classes have in common, from the image onwards.

    Args:
        spec: a spec file for the backbone, instead of the shipped ones or a trace.
        backbone: the path of the backbone in the models that have such a module.

    Raises:
        SourceError: they have nothing in common; the message names the first difference.
        SpecError: no spec describes the backbone.

    >>> share([load("user/classifier"), load("user/segmenter")]).binding.cuts  # doctest: +SKIP
    ('conv1', 'bn1', 'act1', 'maxpool', 'layer1.0')
    """
    sources = _prepared(sources)
    reference, path, binding = _find(sources, spec, backbone)
    first = sources[reference]
    methods = [step.removeprefix("call:") for step in binding.steps if step.startswith("call:")]
    own = opening(first.model, torch.zeros(1, *first.input_size), inside=path, methods=methods)
    ends = {".".join(part for part in (path, name.rpartition(".")[0]) if part) for name in binding.classifier}
    steps = list(itertools.takewhile(lambda step: step not in ends, own.steps))
    like = own.holds[: len(steps)]
    openings = [
        opening(source.model, torch.zeros(1, *source.input_size), _within(source, backbone), like, methods)
        for source in sources
    ]
    openings[reference] = own
    shared = min(len(steps), *(len(found.steps) for found in openings))
    limit = limit_of(sources, openings, steps, reference, shared)
    names = [step[len(path) + 1 if path else 0 :] for step in steps[:shared]]
    if names:  # else they have more to tell than how their images are preprocessed
        _check_preprocessing(sources)
    views = [view_of(source, found, names, first, own) for source, found in zip(sources, openings, strict=True)]
    for number, source in enumerate(sources):
        found = computes_otherwise(views[reference], views[number], source.input_size)
        if found is not None and found < len(names):
            names = names[:found]
            limit = reason_of(first, source, steps[found], openings[number].steps[found])
    if not names:
        raise SourceError(f"{', '.join(s.name for s in sources)} have no backbone in common: {limit}")
    views = [Steps({name: view.get_submodule(name) for name in names}) for view in views]
    return _bound(sources, views, openings, binding, reference, path, limit)


def _within(source: Source, backbone: str | None) -> str:
    """The path of the backbone in the models that have a module there."""
    return backbone if backbone and backbone in dict(source.model.named_modules()) else ""


def _prepared(sources: Sequence[Source]) -> list[Source]:
    """The sources, each with an input size: its own, or that of another."""
    stated = [s for s in sources if s.preprocessing.get("input_size")]
    if not stated:
        raise SourceError("none of the models says how large its images are: give one source with its preprocessing")
    return [replace(s, preprocessing={"input_size": stated[0].input_size, **s.preprocessing}) for s in sources]


def _check_preprocessing(sources: Sequence[Source]) -> None:
    """Refuse sources that state different preprocessing."""
    for other in sources[1:]:
        for key in ("input_size", "mean", "std"):
            a, b = _stated(sources[0], key), _stated(other, key)
            if a is not None and b is not None and a != b:
                raise differ(sources[0], other, key, a, b)


def _stated(source: Source, key: str) -> tuple[float, ...] | None:
    value = source.preprocessing.get(key, source.preprocessing.get(f"image_{key}"))
    return None if value is None else tuple(round(float(x), 4) for x in value)


def _find(sources: Sequence[Source], spec: str | Path | None, backbone: str | None) -> tuple[int, str, Binding]:
    """The model whose backbone is described, where it lies in it, and its binding."""
    known = specs.list_specs() if spec is None else [specs.read(spec)]
    for number, source in enumerate(sources):
        for path, module in source.model.named_modules():
            classes = [f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__]
            for candidate in known if backbone in (None, path) else ():
                if specs.matches(candidate, classes):
                    try:
                        return number, path, bind(candidate, module)
                    except SpecError:
                        continue
    if spec is not None:
        raise SpecError(f"{spec} describes no module of {', '.join(source.name for source in sources)}")
    number = next((i for i, s in enumerate(sources) if s.kind != "image-feature-extraction"), 0)
    return number, "", bind(specs.parse(trace_source(sources[number]), "traced"), sources[number].model)


def _bound(
    sources: list[Source],
    views: Sequence[Steps],
    openings: list[Opening],
    binding: Binding,
    reference: int,
    path: str,
    limit: str,
) -> Shared:
    """The binding of the shared steps: their spaces, which of them each step shows, and where all may be cut."""
    steps = list(views[reference].paths)
    names, moved = set(views[reference].state_dict()), _moved(sources[reference].model, openings[reference], path)
    table = (replace(row, parameter=moved.get(row.parameter, row.parameter)) for row in binding.table)
    rows = tuple(row for row in table if row.parameter in names)
    spaces = {name: space for name, space in binding.spaces.items() if any(row.space == name for row in rows)}
    part = replace(binding, spaces=spaces, table=rows, classifier=(), unmatched=())
    shown = _shown(views[reference], part, sources[reference].input_size)
    part = replace(part, spaces={name: _observed(space, steps, shown) for name, space in spaces.items()})
    after: dict[str, str | None] = {}
    for depth, step in enumerate(steps, 1):
        read = {i for found in openings for i in found.taps(depth)}
        after[step] = shown[step][0] if step in shown and all(steps[i] in shown for i in read) else None
    part = replace(part, owns={step: (step,) for step in steps}, after=after)
    if not part.cuts:
        raise SourceError(f"{', '.join(s.name for s in sources)} cannot be cut anywhere: {limit}")
    kept = [replace(source, model=view, network=source.model) for source, view in zip(sources, views, strict=True)]
    return Shared(sources, kept, part, openings, shown, reference, path, limit)


def _moved(model: nn.Module, own: Opening, path: str) -> dict[str, str]:
    """The backbone's names of the weights that methods read, and theirs in the steps, which run these methods."""
    start = f"{path}." if path else ""
    found: dict[str, str] = {}
    for step, held in zip(own.steps, own.holds, strict=True):
        above, _, method = step.rpartition(".")
        inside = f"{above}."[len(start) :] if above else ""
        if method_of(model, step)[1]:
            found |= {f"{inside}{name}": f"{inside}{method}.{name}" for name in held}
    return found


@torch.no_grad()
def _shown(view: Steps, binding: Binding, size: tuple[int, int, int]) -> dict[str, tuple[str, int]]:
    """The space that the output of each step shows and its axis, found by moving all units of all spaces."""
    net = copy.deepcopy(view).double().eval()
    randomise(net, seed=0)
    labels = random_labels(binding, seed=0)
    moved: Any = permuted(net, binding, labels)
    pixels = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shown = {}
    for step, a, b in zip(view.paths, net.outputs(pixels), moved.outputs(pixels), strict=True):
        for name, axis in _candidates(a, binding):
            if torch.allclose(b.index_select(axis, labels[name]), a, rtol=0, atol=TOLERANCE * float(a.abs().max() + 1)):
                shown[step] = (name, axis)
                break
    return shown


def _candidates(value: Tensor, binding: Binding) -> Iterator[tuple[str, int]]:
    """Spaces and axes that fit a tensor: tokens (3 axes) hold units on the last, maps on axis 1 or the last."""
    for axis in (-1,) if value.ndim == 3 else (1, -1):
        for name, space in binding.spaces.items():
            if space.size == value.shape[axis] and space.size > 1:
                yield name, axis


def _observed(space: FeatureSpace, steps: Sequence[str], shown: dict[str, tuple[str, int]]) -> FeatureSpace:
    """A space whose probes lie in the shared steps; where all of them lie behind, the last output that shows it."""
    inside = tuple(p for p in space.probes if f"{p.module}.".startswith(tuple(f"{step}." for step in steps)))
    if inside or not space.probes:
        return replace(space, probes=inside)
    last = [step for step in steps if shown.get(step, ("", 0))[0] == space.name][-1:]
    return replace(space, probes=tuple(Probe(step, "out", last=shown[step][1] == -1) for step in last))

"""Compare the backbones of different models: how far they agree, and what the first difference is."""

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.backbones.prefix import Prefix
from hf_zipit.models.resume import Steps, find_step, tensor_of
from hf_zipit.sources.source import Source
from hf_zipit.transform.permute import TOLERANCE, randomise

TRIES = 1000  # orders of the layers of one step that are tried at most


def limit_of(
    sources: Sequence[Source], prefixes: Sequence[Prefix], steps: Sequence[str], reference: int, shared: int
) -> str:
    """The reason why models share no more than the first `shared` steps.

    Args:
        sources: The models.
        prefixes: The prefix of each model.
        steps: The steps of the reference model's backbone.
        reference: Number of the reference model.
        shared: Number of steps that all models have.
    """
    first = sources[reference]
    short = next((k for k, found in enumerate(prefixes) if len(found.steps) == shared != len(steps)), None)
    if short is None:
        return (
            f"no step after {steps[-1]} of {first.name} can be run by itself and permuted"
            if steps
            else f"{first.name} has no steps"
        )
    other, step = sources[short], steps[shared]
    twin = _twin(other.model, step)
    found = None if twin is None else _difference(first, step, other, twin)
    return found or f"{other.name} has no layer like {step} of {first.name} in its place"


def _twin(model: nn.Module, step: str) -> str | None:
    """The path of the module or method in another model that has the name of a step."""
    above, _, name = step.rpartition(".")
    for path, module in model.named_modules():
        inside = f".{path}".endswith(f".{above}") if above else True
        if inside and (name in module._modules or callable(getattr(type(module), name, None))):
            return f"{path}.{name}".lstrip(".")
    return None


def _difference(first: Source, a: str, other: Source, b: str) -> str | None:
    """The first difference between the parameters of two steps; `None` if names and shapes agree."""
    left, right = (find_step(s.model, path).state_dict() for s, path in ((first, a), (other, b)))
    for name in [*left, *(n for n in right if n not in left)]:
        if name not in left or name not in right:
            has, lacks = (first.name, other.name) if name in left else (other.name, first.name)
            return f"{has} has a parameter {a if name in left else b}.{name}, {lacks} has none"
        if left[name].shape != right[name].shape:
            return (
                f"{a}.{name} has shape {list(left[name].shape)} in {first.name} and {list(right[name].shape)} in "
                f"{other.name}"
            )
    return None


@torch.no_grad()
def first_divergent_step(first: Steps, other: Steps, size: tuple[int, int, int]) -> int | None:
    """The number of the first step that computes something else with equal parameters, or that `other` lacks.

    Args:
        first: Steps of the reference model.
        other: Steps of another model, under the same names.
        size: Channels, height and width of an image.
    """
    if first is other:
        return None
    a = copy.deepcopy(first).double().eval()
    b = copy.deepcopy(other).double().eval()
    randomise(a, seed=0)
    b.load_state_dict(a.state_dict(), strict=False)  # weights that no step reads may differ
    pixels = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, (x, y) in enumerate(zip(a.outputs(pixels), b.outputs(pixels), strict=False)):
        if x.shape != y.shape or float((x - y).abs().max()) > TOLERANCE * max(1.0, float(x.abs().max())):
            return number
    return None if len(a.paths) == len(b.paths) else len(b.paths)


@torch.no_grad()
def view_of(source: Source, found: Prefix, names: Sequence[str], first: Source, own: Prefix) -> Steps:
    """The steps of a model under the names of the reference model's, up to the first step whose weights do not fit.

    Args:
        source: The model.
        found: Its prefix.
        names: The reference model's names of the shared steps.
        first: The reference model.
        own: The prefix of the reference model.
    """
    mine = {name: find_step(source.model, step) for name, step in zip(names, found.steps, strict=False)}
    if all(set(a) == set(b) for a, b in zip(found.holds, own.holds[: len(names)], strict=False)):
        return Steps(mine)
    pixels = torch.zeros(1, *source.input_size)
    steps = {}
    inputs = itertools.chain([pixels], copy.deepcopy(Steps(mine)).float().eval().outputs(pixels))
    for (name, module), like, held, others, value in zip(
        mine.items(), own.steps, own.holds, found.holds, inputs, strict=False
    ):
        twin = find_step(first.model, like)
        pairs = _correspondence(twin, module, list(held), list(others), torch.randn_like(value))
        if pairs is None:
            break
        state = module.state_dict()
        steps[name] = copy.deepcopy(twin)
        steps[name].load_state_dict({a: state[b] for a, b in pairs.items()}, strict=False)
    return Steps(steps)


@torch.no_grad()
def _correspondence(
    first: nn.Module, other: nn.Module, names: Sequence[str], others: Sequence[str], value: Tensor
) -> dict[str, str] | None:
    """Pair the weights of two steps so that both compute the same; `None` if no pairing does.

    Weights of equal names and shapes are a pair. The other layers are tried in every order that fits their shapes:
    queries, keys and values have equal shapes.

    Args:
        first: A step of the reference model.
        other: The same step of another model.
        names: The weights that `first` reads, in the order in which it reads them.
        others: The weights that `other` reads, likewise.
        value: An input of the step.

    Returns:
        Weight of `first` -> weight of `other`.
    """
    a = copy.deepcopy(first).double().eval()
    b = copy.deepcopy(other).double().eval()
    value = value.double()
    randomise(b, seed=0)
    known = a.state_dict()
    state = b.state_dict()
    expected, _ = tensor_of(b(value))
    same = {name: name for name in names if name in others and known[name].shape == state[name].shape}
    mine = _by_shape({name: known[name] for name in names if name not in same})
    theirs = _by_shape({name: state[name] for name in others if name not in same})
    if {key: len(layers) for key, layers in mine.items()} != {key: len(layers) for key, layers in theirs.items()}:
        return None
    orders = itertools.product(*(itertools.permutations(theirs[key]) for key in mine))
    for order in itertools.islice(orders, TRIES):
        pairs = dict(same)
        for key, layers in zip(mine, order, strict=True):
            for ours, its in zip(mine[key], layers, strict=True):
                pairs.update(zip(ours, its, strict=True))
        a.load_state_dict({name: state[twin] for name, twin in pairs.items()}, strict=False)
        out, _ = tensor_of(a(value))
        if out.shape == expected.shape and torch.allclose(out, expected, rtol=0, atol=TOLERANCE):
            return pairs
    return None


def _by_shape(weights: Mapping[str, Tensor]) -> dict[tuple[torch.Size, ...], list[tuple[str, ...]]]:
    """The names of the weights of each layer, grouped by the shapes of the weights."""
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[tuple[torch.Size, ...], list[tuple[str, ...]]] = {}
    for held in layers.values():
        found.setdefault(tuple(weights[name].shape for name in held), []).append(tuple(held))
    return found


def reason_of(first: Source, other: Source, a: str, b: str) -> str:
    """The reason why two steps compute different things: their first module with different settings, if any.

    Args:
        first: The reference model.
        other: Another model.
        a: Path of the step in `first`.
        b: Path of the step in `other`.
    """
    left, right = (dict(find_step(s.model, path).named_modules()) for s, path in ((first, a), (other, b)))
    for name, module in left.items():
        twin = right.get(name)
        if twin is not None and module.state_dict() and module.extra_repr() != twin.extra_repr():
            where = f"{a}.{name}" if name else a
            return (
                f"{where} is {type(module).__name__}({module.extra_repr()}) in {first.name} and "
                f"{type(twin).__name__}({twin.extra_repr()}) in {other.name}"
            )
    return f"{a} of {first.name} and {b} of {other.name} compute different things with the same parameters"

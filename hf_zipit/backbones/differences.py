"""How far backbones inside different models are alike, and what the first difference is."""

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hf_zipit.backbones.prefix import Opening
from hf_zipit.models.resume import Steps, find_step, tensor_of
from hf_zipit.sources.source import Source
from hf_zipit.transform.permute import TOLERANCE, randomise

TRIES = 1000  # of orders of the layers of one step


def limit_of(
    sources: Sequence[Source], openings: Sequence[Opening], steps: Sequence[str], reference: int, shared: int
) -> str:
    """Why models share no more than so many steps."""
    first = sources[reference]
    short = next((k for k, found in enumerate(openings) if len(found.steps) == shared != len(steps)), None)
    if short is None:
        return f"nothing behind {steps[-1]} of {first.name} can be run by itself" if steps else f"{first.name} has none"
    other, step = sources[short], steps[shared]
    twin = _twin(other.model, step)
    found = None if twin is None else _difference(first, step, other, twin)
    return found or f"{other.name} has nothing like {step} of {first.name} at this place"


def _twin(model: nn.Module, step: str) -> str | None:
    """Where a module, or a method, of this name lies in a model."""
    above, _, name = step.rpartition(".")
    for path, module in model.named_modules():
        inside = f".{path}".endswith(f".{above}") if above else True
        if inside and (name in module._modules or callable(getattr(type(module), name, None))):
            return f"{path}.{name}".lstrip(".")
    return None


def _difference(first: Source, a: str, other: Source, b: str) -> str | None:
    """What differs between the parameters of two steps."""
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
def computes_otherwise(first: Steps, other: Steps, size: tuple[int, int, int]) -> int | None:
    """The number of the first step that, with equal parameters, computes something else, or that `other` lacks."""
    if first is other:
        return None
    a, b = copy.deepcopy(first).double().eval(), copy.deepcopy(other).double().eval()
    randomise(a, seed=0)
    b.load_state_dict(a.state_dict(), strict=False)  # what neither reads may differ
    pixels = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, (x, y) in enumerate(zip(a.outputs(pixels), b.outputs(pixels), strict=False)):
        if x.shape != y.shape or float((x - y).abs().max()) > TOLERANCE * max(1.0, float(x.abs().max())):
            return number
    return None if len(a.paths) == len(b.paths) else len(b.paths)


@torch.no_grad()
def view_of(source: Source, found: Opening, names: Sequence[str], first: Source, own: Opening) -> Steps:
    """The steps of a model under the names of the first one's, with their weights, as far as these are found."""
    mine = {name: find_step(source.model, step) for name, step in zip(names, found.steps, strict=False)}
    if all(set(a) == set(b) for a, b in zip(found.holds, own.holds[: len(names)], strict=False)):
        return Steps(mine)
    pixels, steps = torch.zeros(1, *source.input_size), {}
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
    """Which weight of a step is which of another that computes the same; `None` if it does not.

    Equal names are the same weight. Layers whose weights have equal shapes are tried in every order: queries, keys and
    values look alike.

    Args:
        names, others: the weights that the steps read, in the order in which they do.
        value: what the step is given.
    """
    a, b, value = copy.deepcopy(first).double().eval(), copy.deepcopy(other).double().eval(), value.double()
    randomise(b, seed=0)
    known, state, expected = a.state_dict(), b.state_dict(), tensor_of(b(value))[0]
    same = {name: name for name in names if name in others and known[name].shape == state[name].shape}
    mine = _by_shape({name: known[name] for name in names if name not in same})
    theirs = _by_shape({name: state[name] for name in others if name not in same})
    if {key: len(layers) for key, layers in mine.items()} != {key: len(layers) for key, layers in theirs.items()}:
        return None
    orders = itertools.product(*(itertools.permutations(theirs[key]) for key in mine))
    for order in itertools.islice(orders, TRIES):
        pairs = ((x, y) for key, found in zip(mine, order, strict=True) for x, y in zip(mine[key], found, strict=True))
        found = same | {n: m for x, y in pairs for n, m in zip(x, y, strict=True)}
        a.load_state_dict({n: state[m] for n, m in found.items()}, strict=False)
        out, _ = tensor_of(a(value))
        if out.shape == expected.shape and torch.allclose(out, expected, rtol=0, atol=TOLERANCE):
            return found
    return None


def _by_shape(weights: Mapping[str, Tensor]) -> dict[tuple[torch.Size, ...], list[tuple[str, ...]]]:
    """The names of each layer's weights, by their shapes."""
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    found: dict[tuple[torch.Size, ...], list[tuple[str, ...]]] = {}
    for held in layers.values():
        found.setdefault(tuple(weights[name].shape for name in held), []).append(tuple(held))
    return found


def reason_of(first: Source, other: Source, a: str, b: str) -> str:
    """Name the first module of a step that is not the same."""
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

"""How far backbones inside different models are alike, and what the first difference is."""

import copy
from collections.abc import Sequence

import torch

from hf_zipit.checks import TOLERANCE, randomise
from hf_zipit.resume import Steps
from hf_zipit.source import Source
from hf_zipit.tracing.taps import Opening


def limit_of(
    sources: Sequence[Source], openings: Sequence[Opening], steps: Sequence[str], reference: int, shared: int
) -> str:
    """Why models share no more than so many steps."""
    first = sources[reference]
    short = next((k for k, found in enumerate(openings) if len(found.steps) == shared != len(steps)), None)
    if short is None:
        return f"nothing behind {steps[-1]} of {first.name} can be run by itself" if steps else f"{first.name} has none"
    other, step = sources[short], steps[shared]
    twin = step if step in dict(other.model.named_modules()) else None
    if twin is None:
        ends = tuple(f"{path}" for path, _ in other.model.named_modules() if path.endswith(f".{step}"))
        twin = ends[0] if ends else None
    found = None if twin is None else _difference(first, step, other, twin)
    return found or f"{other.name} has nothing like {step} of {first.name} at this place"


def _difference(first: Source, a: str, other: Source, b: str) -> str | None:
    """What differs between the parameters of two steps."""
    left, right = (s.model.get_submodule(path).state_dict() for s, path in ((first, a), (other, b)))
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
    """The number of the first step that, with equal parameters, computes something else."""
    if first is other:
        return None
    a, b = copy.deepcopy(first).double().eval(), copy.deepcopy(other).double().eval()
    randomise(a, seed=0)
    b.load_state_dict(a.state_dict(), strict=False)  # what neither reads may differ
    pixels = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, (x, y) in enumerate(zip(a.outputs(pixels), b.outputs(pixels), strict=True)):
        if x.shape != y.shape or float((x - y).abs().max()) > TOLERANCE * max(1.0, float(x.abs().max())):
            return number
    return None


def reason_of(first: Source, other: Source, a: str, b: str) -> str:
    """Name the first module of a step that is not the same."""
    left, right = (dict(s.model.get_submodule(path).named_modules()) for s, path in ((first, a), (other, b)))
    for name, module in left.items():
        twin = right.get(name)
        if twin is not None and module.state_dict() and module.extra_repr() != twin.extra_repr():
            where = f"{a}.{name}" if name else a
            return (
                f"{where} is {type(module).__name__}({module.extra_repr()}) in {first.name} and "
                f"{type(twin).__name__}({twin.extra_repr()}) in {other.name}"
            )
    return f"{a} of {first.name} and {b} of {other.name} compute different things with the same parameters"

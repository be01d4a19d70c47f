"""The steps that open a model, and which of their outputs the rest of it reads, from one forward pass of one image."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.tracing.cuts import Flow, Step, Version, replay

Shapes = Mapping[str, torch.Size]  # of the tensors that a module reads


@dataclass(frozen=True)
class Opening:
    """Modules that, called one after the other on the image, are the beginning of a model.

    `steps` are their paths, `holds` what each reads of its own; `reads[i]` are the numbers of the steps whose outputs
    are read by what follows when the first `i + 1` steps have been run elsewhere: a decoder reads several.
    """

    steps: tuple[str, ...]
    holds: tuple[Shapes, ...]
    reads: tuple[tuple[int, ...], ...]

    def taps(self, depth: int) -> tuple[int, ...]:
        """The numbers of those of the first `depth` steps whose outputs the rest of the model reads."""
        return self.reads[depth - 1]


@torch.no_grad()
def opening(model: nn.Module, pixels: Tensor, inside: str = "", like: Sequence[Shapes] | None = None) -> Opening:
    """The chain of modules from the image onwards that goes furthest.

    Every module of it is given the output of the one before and nothing else that depends on the image, and nothing
    but its output is seen outside of it. What else happens to the outputs (skip connections, feature lists) is free.

    Args:
        inside: only modules in this one are taken.
        like: what the modules of another chain read; this chain follows it as far as it can.

    Raises:
        TraceError: the model does not run on this image.

    >>> opening(smp.Unet("resnet18"), torch.zeros(1, 3, 64, 64)).taps(5)  # doctest: +SKIP
    (2, 4)
    """
    flow, _, wanted = replay(model, pixels)
    once = {path for path, count in Counter(step.path for step in flow.steps).items() if count == 1}
    whole = [s for s in flow.steps if s.path in once and s.alone and f"{s.path}.".startswith(inside and f"{inside}.")]
    whole = [s for s in whole if s.before != s.after and _closed(s, flow, wanted)]
    state = {name: value.shape for name, value in model.state_dict().items() if name in flow.used}
    held = {s.path: {n[len(s.path) + 1 :]: v for n, v in state.items() if n.startswith(f"{s.path}.")} for s in whole}
    chain = _furthest(whole, flow) if like is None else _following(whole, flow, like, held)
    chain = chain[: _runs(chain, flow, model)]
    reads = tuple(_reads(flow, wanted, chain[: depth + 1]) for depth in range(len(chain)))
    return Opening(tuple(s.path for s in chain), tuple(held[s.path] for s in chain), reads)


def _furthest(whole: Sequence[Step], flow: Flow) -> list[Step]:
    """The chain that ends last; of those that end with the same tensor, the one with most steps."""
    longest: dict[Version, list[Step]] = {flow.image: []}
    for step in whole:  # in the order in which they end
        if step.before in longest:
            path = [*longest[step.before], step]
            if len(path) > len(longest.get(step.after, [])):
                longest[step.after] = path
    return max(longest.values(), key=lambda path: path[-1].end if path else 0)


def _following(whole: Sequence[Step], flow: Flow, like: Sequence[Shapes], held: Mapping[str, Shapes]) -> list[Step]:
    """The chain whose modules read what those of another chain do."""
    now, chain = flow.image, []
    for shapes in like:
        step = next((s for s in whole if s.before == now and held[s.path] == shapes), None)
        if step is None:
            break
        chain.append(step)
        now = step.after
    return chain


def _runs(chain: Sequence[Step], flow: Flow, model: nn.Module) -> int:
    """How many steps of a chain, called one after the other with nothing but a tensor, do what the model does."""
    value = flow.tensor(flow.image)
    for number, step in enumerate(chain):
        wanted = flow.tensor(step.after)
        try:
            value = copy.deepcopy(model.get_submodule(step.path)).eval()(value)
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
            return number
        if wanted is not None and not (value.shape == wanted.shape and torch.allclose(value, wanted, 1e-4, 1e-5)):
            return number
    return len(chain)


def _closed(step: Step, flow: Flow, wanted: list[Version]) -> bool:
    """Whether a module reads nothing but its input, and only its output is read outside."""
    inside = flow.ops[step.start : step.end]
    made = {version for _, writes in inside for version in writes}
    if not all(reads <= made | {step.before} for reads, _ in inside):
        return False
    later = {version for reads, _ in flow.ops[step.end :] for version in reads} | set(wanted)
    return not (made - {step.after}) & later


def _reads(flow: Flow, wanted: list[Version], done: list[Step]) -> tuple[int, ...]:
    """Which outputs of the steps that were done are read by an op outside of them that the result depends on."""
    spans = [(step.start, step.end) for step in done]
    needed, read = set(wanted), set(wanted)
    for number in reversed(range(1, len(flow.ops))):
        reads, writes = flow.ops[number]
        if writes & needed and not any(start <= number < end for start, end in spans):
            needed |= reads
            read |= reads
    return tuple(i for i, step in enumerate(done) if step.after in read)

"""The steps that open a model, and which of their outputs the rest of it reads, from one forward pass of one image."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.models.resume import find_step, method_of, tensor_of
from hf_zipit.tracing.cuts import Flow, Step, Version, replay

Shapes = Mapping[str, torch.Size]  # of the tensors that a module reads


@dataclass(frozen=True)
class Opening:
    """Modules that, called one after the other on the image, are the beginning of a model.

    `steps` are their paths, and those of methods; `holds` is what each reads of its own, in the order in which it does,
    `fields` where its tensor lies in what it returns, for those that return more; `reads[i]` are the numbers of the
    steps whose outputs are read behind the first `i + 1`, when these have been run elsewhere: a decoder reads several.
    """

    steps: tuple[str, ...]
    holds: tuple[Shapes, ...]
    fields: Mapping[str, int | str]
    reads: tuple[tuple[int, ...], ...]

    def taps(self, depth: int) -> tuple[int, ...]:
        """The numbers of those of the first `depth` steps whose outputs the rest of the model reads."""
        return self.reads[depth - 1]


@torch.no_grad()
def opening(
    model: nn.Module,
    pixels: Tensor,
    inside: str = "",
    like: Sequence[Shapes] | None = None,
    methods: Sequence[str] = (),
) -> Opening:
    """The chain of modules from the image onwards that goes furthest.

    Every module of it is given the output of the one before and nothing else that depends on the image, and nothing
    but its output is seen outside of it. What else happens to the outputs (skip connections, feature lists) is free.

    Args:
        inside: only modules in this one are taken.
        like: what the modules of another chain read; this chain follows it as far as it can, under any names.
        methods: names of methods that may be steps as well, where all parameters beside them are read by them alone.

    Raises:
        TraceError: the model does not run on this image.

    >>> opening(smp.Unet("resnet18"), torch.zeros(1, 3, 64, 64)).taps(5)  # doctest: +SKIP
    (2, 4)
    """
    flow, _, wanted = replay(model, pixels, methods)
    once = {path for path, count in Counter(step.path for step in flow.steps).items() if count == 1}
    whole = [s for s in flow.steps if s.path in once and s.alone and f"{s.path}.".startswith(inside and f"{inside}.")]
    whole = [s for s in whole if s.before != s.after and _closed(s, flow, wanted)]
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    held = {s.path: _held(s, model, shapes) for s in whole}
    whole = [s for s in whole if not method_of(model, s.path)[1] or _owns_all(s, flow)]
    chain = _furthest(whole, flow) if like is None else _following(whole, flow, like, held)
    chain = chain[: _runs(chain, flow, model)]
    reads = tuple(_reads(flow, wanted, chain[: depth + 1]) for depth in range(len(chain)))
    fields = {s.path: s.field for s in chain if s.field is not None}
    return Opening(tuple(s.path for s in chain), tuple(held[s.path] for s in chain), fields, reads)


def _held(step: Step, model: nn.Module, shapes: Shapes) -> dict[str, torch.Size]:
    """What a step reads of its own weights; a method of those beside it."""
    above = step.path.rpartition(".")[0] if method_of(model, step.path)[1] else step.path
    start = f"{above}." if above else ""
    return {name[len(start) :]: shapes[name] for name in step.used if name in shapes and name.startswith(start)}


def _owns_all(step: Step, flow: Flow) -> bool:
    """Whether a method reads weights of its module alone, all that are read, and is the only one to do so."""
    above = step.path.rpartition(".")[0]
    beside = [name for name in flow.used if name.rpartition(".")[0] == above]
    return bool(beside) and sorted(beside) == sorted(step.used)


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
    """The chain whose steps read weights of the same names and shapes as another's, or of the same shapes."""
    now, chain = flow.image, []
    for shapes in like:
        here = [s for s in whole if s.before == now]
        same = [s for s in here if held[s.path] == shapes]
        like_it = [s for s in here if sorted(held[s.path].values()) == sorted(shapes.values())]
        if not like_it and not same:
            break
        chain.append(same[0] if same else like_it[-1])  # a layer alone would leave the block around it
        now = chain[-1].after
    return chain


def _runs(chain: Sequence[Step], flow: Flow, model: nn.Module) -> int:
    """How many steps of a chain, called one after the other with nothing but a tensor, do what the model does."""
    value = flow.tensor(flow.image)
    for number, step in enumerate(chain):
        wanted = flow.tensor(step.after)
        try:
            value, _ = tensor_of(copy.deepcopy(find_step(model, step.path)).eval()(value))
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

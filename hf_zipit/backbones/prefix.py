"""Find the longest chain of steps at the start of a model, and which of its outputs the rest of the model reads."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_zipit.models.resume import find_step, method_of, tensor_of
from hf_zipit.tracing.cuts import Call, Flow, Version, replay

Shapes = Mapping[str, torch.Size]  # weight -> shape, for the weights that a step reads


@dataclass(frozen=True)
class Prefix:
    """A chain of steps that starts at the image: the first part of a model.

    Attributes:
        steps: Paths of the modules and methods, in order.
        holds: For each step, the weights of its own that it reads, in the order in which it reads them.
        fields: Step -> field or index of the tensor in its output, for steps that return more than a tensor.
        reads: `reads[i]` are the numbers of those of the first `i + 1` steps whose outputs the rest of the model reads.
            A decoder with skip connections reads several.
    """

    steps: tuple[str, ...]
    holds: tuple[Shapes, ...]
    fields: Mapping[str, int | str]
    reads: tuple[tuple[int, ...], ...]

    def taps(self, depth: int) -> tuple[int, ...]:
        """The numbers of the first `depth` steps whose outputs the rest of the model reads."""
        return self.reads[depth - 1]


@torch.no_grad()
def find_prefix(
    model: nn.Module,
    pixels: Tensor,
    inside: str = "",
    like: Sequence[Shapes] | None = None,
    methods: Sequence[str] = (),
) -> Prefix:
    """Find the chain of steps that starts at the image and goes furthest, from one forward pass.

    A step gets the output of the step before and nothing else that depends on the image. The rest of the model uses
    nothing of a step but its output, and may use that in any way (skip connections, lists of features).

    Args:
        model: The model; it is not changed.
        pixels: One image, (1, channels, height, width); only its shape is used.
        inside: Path of a module; only modules in it are steps.
        like: The weights that each step of another model's chain reads. This chain follows that one as far as it can,
            under any names.
        methods: Names of methods that may be steps too. A method qualifies if it reads all parameters of its own
            module, and nothing else reads them.

    Raises:
        TraceError: the model does not run on this image.

    >>> find_prefix(smp.Unet("resnet18"), torch.zeros(1, 3, 64, 64)).taps(5)  # doctest: +SKIP
    (2, 4)
    """
    flow, _, wanted = replay(model, pixels, methods)
    counts = Counter(call.path for call in flow.calls)
    start = f"{inside}." if inside else ""
    once = [c for c in flow.calls if counts[c.path] == 1 and c.alone and f"{c.path}.".startswith(start)]
    steps = [c for c in once if c.before != c.after and _is_closed(c, flow, wanted)]
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    held = {c.path: _held(c, model, shapes) for c in steps}
    steps = [c for c in steps if not method_of(model, c.path)[1] or _owns_all(c, flow)]
    chain = _furthest(steps, flow) if like is None else _following(steps, flow, like, held)
    chain = chain[: _runnable(chain, flow, model)]
    return Prefix(
        steps=tuple(c.path for c in chain),
        holds=tuple(held[c.path] for c in chain),
        fields={c.path: c.field for c in chain if c.field is not None},
        reads=tuple(_reads(flow, wanted, chain[: depth + 1]) for depth in range(len(chain))),
    )


def _held(call: Call, model: nn.Module, shapes: Shapes) -> dict[str, torch.Size]:
    """The weights of its own that a step reads; those of a method are the weights of its module."""
    above = call.path.rpartition(".")[0] if method_of(model, call.path)[1] else call.path
    start = f"{above}." if above else ""
    return {name[len(start) :]: shapes[name] for name in call.used if name in shapes and name.startswith(start)}


def _owns_all(call: Call, flow: Flow) -> bool:
    """Whether a method reads every used weight of its own module, only those, and nothing else reads them."""
    above = call.path.rpartition(".")[0]
    beside = [name for name in flow.used if name.rpartition(".")[0] == above]
    return bool(beside) and sorted(beside) == sorted(call.used)


def _furthest(steps: Sequence[Call], flow: Flow) -> list[Call]:
    """The chain that ends last; of the chains to the same tensor, the one with the most steps."""
    longest: dict[Version, list[Call]] = {flow.image: []}
    for call in steps:  # in the order in which they end
        if call.before in longest:
            path = [*longest[call.before], call]
            if len(path) > len(longest.get(call.after, [])):
                longest[call.after] = path
    return max(longest.values(), key=lambda path: path[-1].end if path else 0)


def _following(steps: Sequence[Call], flow: Flow, like: Sequence[Shapes], held: Mapping[str, Shapes]) -> list[Call]:
    """The chain whose steps read the weights of another chain: equal names and shapes, or at least equal shapes."""
    now = flow.image
    chain: list[Call] = []
    for shapes in like:
        here = [c for c in steps if c.before == now]
        same_names = [c for c in here if held[c.path] == shapes]
        same_shapes = [c for c in here if sorted(held[c.path].values()) == sorted(shapes.values())]
        if not same_names and not same_shapes:
            break
        chain.append(same_names[0] if same_names else same_shapes[-1])  # the last is the outermost: the whole block
        now = chain[-1].after
    return chain


def _runnable(chain: Sequence[Call], flow: Flow, model: nn.Module) -> int:
    """The number of leading steps that, each called with one tensor, compute what the model computes."""
    value = flow.tensor(flow.image)
    for number, call in enumerate(chain):
        wanted = flow.tensor(call.after)
        try:
            value, _ = tensor_of(copy.deepcopy(find_step(model, call.path)).eval()(value))
        except (RuntimeError, TypeError, ValueError, KeyError, AttributeError):
            return number
        if wanted is not None and not (value.shape == wanted.shape and torch.allclose(value, wanted, 1e-4, 1e-5)):
            return number
    return len(chain)


def _is_closed(call: Call, flow: Flow, wanted: list[Version]) -> bool:
    """Whether a step reads nothing but its input, and only its output is read outside."""
    inside = flow.ops[call.start : call.end]
    made = {version for _, writes in inside for version in writes}
    if not all(reads <= made | {call.before} for reads, _ in inside):
        return False
    later = {version for reads, _ in flow.ops[call.end :] for version in reads} | set(wanted)
    return not (made - {call.after}) & later


def _reads(flow: Flow, wanted: list[Version], done: list[Call]) -> tuple[int, ...]:
    """The numbers of the steps in `done` whose outputs are read outside of `done`, if the result depends on it."""
    spans = [(call.start, call.end) for call in done]
    needed = set(wanted)
    read = set(wanted)
    for number in reversed(range(1, len(flow.ops))):
        reads, writes = flow.ops[number]
        if writes & needed and not any(start <= number < end for start, end in spans):
            needed |= reads
            read |= reads
    return tuple(i for i, call in enumerate(done) if call.after in read)

"""Legal cuts of any model: the modules after which exactly one tensor is alive, found by replaying one forward pass."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hf_zipit.errors import SpecError, TraceError
from hf_zipit.models.resume import tensor_of
from hf_zipit.specs.spaces import Binding
from hf_zipit.tracing.tracer import first_line, outputs

Version = tuple[int, int]  # a tensor, and how often it was written


@torch.no_grad()
def legal_cuts(model: nn.Module, pixels: Tensor) -> list[str]:
    """Modules of a model after which one tensor that depends on the image is alive, in order of execution.

    A block and its last layer end with the same tensor: the block is named.

    Raises:
        TraceError: the model does not run on this image.

    >>> legal_cuts(timm.create_model("resnet18"), torch.zeros(1, 3, 64, 64))[3:6]  # doctest: +SKIP
    ['maxpool', 'layer1.0', 'layer1.1']
    """
    ends = _ends(model, pixels)
    modules = dict(model.named_modules())
    return [path for path in ends if not _inside(path, ends, modules)]


@torch.no_grad()
def check_cuts(model: nn.Module, binding: Binding, pixels: Tensor) -> None:
    """Check that after every module at which a spec allows a cut, one tensor is alive.

    Raises:
        SpecError: more than one is; the message names the step.
        TraceError: the model does not run on this image.
    """
    ends = _ends(model, pixels)
    for step in binding.cuts:
        if ":" not in step and step not in ends:
            raise SpecError(f"{binding.spec.file}: after step {step} more than one tensor is alive: it is no cut")


@torch.no_grad()
def chain_of(model: nn.Module, pixels: Tensor) -> list[str]:
    """Modules that, called one after the other, are the model; `[]` if there are none (operations lie between).

    Raises:
        TraceError: the model does not run on this image.

    >>> chain_of(timm.create_model("resnet18"), torch.zeros(1, 3, 64, 64))[3:6]  # doctest: +SKIP
    ['maxpool', 'layer1.0', 'layer1.1']
    """
    flow, alive, wanted = replay(model, pixels)
    modules = dict(model.named_modules())
    whole = [s for s in flow.steps if s.plain and alive[s.start] == {s.before} and alive[s.end] == {s.after}]
    solid = {s.path for s in whole if not isinstance(modules[s.path], nn.Sequential | nn.ModuleList)}
    longest: dict[Version, list[str]] = {flow.image: []}
    for step in whole:
        parts = step.path.split(".")
        nested = any(".".join(parts[:end]) in solid for end in range(1, len(parts)))
        if nested or step.before == step.after or step.before not in longest:
            continue
        path = [*longest[step.before], step.path]
        if len(path) > len(longest.get(step.after, [])):
            longest[step.after] = path
    return longest.get(wanted[0], []) if len(wanted) == 1 else []


def _ends(model: nn.Module, pixels: Tensor) -> dict[str, Version]:
    """The modules after which one tensor is alive, with that tensor."""
    flow, alive, _ = replay(model, pixels)
    return {step.path: step.after for step in flow.steps if alive[step.end] == {step.after}}


def replay(
    model: nn.Module, pixels: Tensor, methods: Iterable[str] = ()
) -> tuple["Flow", list[set[Version]], list[Version]]:
    """One forward pass: its ops, its modules and named methods, what is alive after each op, and the outputs."""
    net = copy.deepcopy(model).eval()
    like = next(net.parameters(), pixels)
    image = torch.randn(1, *pixels.shape[1:], generator=torch.Generator().manual_seed(0)).to(like)
    flow = Flow(image)
    flow.weights = {id(t): name for name, t in (*net.named_parameters(), *net.named_buffers())}
    try:
        with flow.watching(net, methods), flow:
            output = net(image)
    except Exception as error:  # whatever a model does on an image it does not fit
        raise TraceError(
            f"{type(model).__name__} does not run on an image {list(image.shape)}: {first_line(error)}"
        ) from error
    wanted = [flow.version(t) for t in outputs(output) if flow.knows(t)]
    return flow, flow.alive(wanted), wanted


def _inside(path: str, ends: dict[str, Version], modules: dict[str, nn.Module]) -> bool:
    """Whether a module is the last part of a larger one that ends with the same tensor; containers do not count."""
    parent = path.rpartition(".")[0]
    if isinstance(modules[parent], nn.Sequential | nn.ModuleList):
        return False
    return ends.get(parent) == ends[path]


@dataclass(frozen=True)
class Step:
    """One call of a module: the ops done before and after it, its first input and its output.

    `plain` says that the input is all it was given, and that it returns a tensor; `alone` that nothing else it was
    given depends on the image, and that it returns one tensor, in `field` if it returns more. `used` names the weights
    that were read, in order.
    """

    path: str
    start: int
    end: int
    before: Version | None
    after: Version
    plain: bool
    alone: bool
    field: int | str | None
    used: tuple[str, ...]


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which tensors depend on the image, and which op reads and writes them."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = [image]  # so that no id is used twice
        self.written = {id(image): 0}
        self.ops: list[tuple[set[Version], set[Version]]] = [(set(), {(id(image), 0)})]
        self.image = (id(image), 0)
        self.steps: list[Step] = []
        self.weights: dict[int, str] = {}  # parameters and buffers of the model, by identity
        self.used: list[str] = []  # those that ops read, in order
        self.entered: dict[str, tuple[int, int, Version | None, bool, bool]] = {}

    def knows(self, value: object) -> bool:
        """Whether this is a tensor that depends on the image."""
        return isinstance(value, Tensor) and id(value) in self.written

    def tensor(self, version: Version) -> Tensor | None:
        """The tensor of a version, unless it was written again."""
        value = next(t for t in self.kept if id(t) == version[0])
        return value if self.version(value) == version else None

    def version(self, value: Tensor) -> Version:
        """The tensor as it is now."""
        return id(value), self.written[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        reads = {self.version(t) for t in tensors if self.knows(t)}
        self.used += [self.weights[id(t)] for t in tensors if id(t) in self.weights]
        out = func(*args, **kwargs)
        if reads:
            made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
            for value in made:
                self.kept.append(value)
                self.written[id(value)] = self.written.get(id(value), -1) + 1
            self.ops.append((reads, {self.version(t) for t in made}))
        return out

    @contextmanager
    def watching(self, net: nn.Module, methods: Iterable[str] = ()) -> Iterator[None]:
        """Hooks that note where each module, and each method of these names, ends and with which tensor."""
        handles = []
        for path, module in net.named_modules():
            for name in methods:
                if callable(getattr(type(module), name, None)):
                    vars(module)[name] = self._watched(f"{path}.{name}".lstrip("."), getattr(module, name))
            enter = lambda _, args, kwargs, path=path: self._enter(path, args, kwargs)  # noqa: E731
            leave = lambda _, __, out, path=path: self._leave(path, out)  # noqa: E731
            if path:
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watched(self, path: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._enter(path, args, kwargs)
            out = method(*args, **kwargs)
            self._leave(path, out)
            return out

        return run

    def _enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = args[0] if args else None
        version = self.version(first) if isinstance(first, Tensor) and self.knows(first) else None
        alone = bool(args) and not any(self.knows(t) for t in tree_flatten((args[1:], kwargs))[0])
        self.entered[path] = (len(self.ops), len(self.used), version, len(args) == 1 and not kwargs, alone)

    def _leave(self, path: str, out: Any) -> None:
        start, read, before, plain, alone = self.entered.pop(path)
        try:
            first, field = tensor_of(out)
        except TypeError:
            first, field, alone = out[0] if isinstance(out, tuple) and out else out, None, False
        if isinstance(first, Tensor) and self.knows(first):
            span, used = (path, start, len(self.ops), before, self.version(first)), tuple(self.used[read:])
            self.steps.append(Step(*span, plain and first is out, alone, field, used))

    def alive(self, wanted: list[Version]) -> list[set[Version]]:
        """For every number of ops done: the tensors that a later op, or the user, still reads."""
        now, out = set(wanted), [set(wanted)]
        for reads, writes in reversed(self.ops):
            now = (now - writes) | reads
            out.append(set(now))
        return out[::-1]

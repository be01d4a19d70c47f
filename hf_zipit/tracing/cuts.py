"""Find the legal cuts of any model, where exactly one tensor is alive, by recording one forward pass."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hf_zipit.errors import SpecError, TraceError
from hf_zipit.models.resume import around, tensor_of
from hf_zipit.specs.spaces import Binding
from hf_zipit.tracing.tracer import first_line, outputs

Version = tuple[int, int]  # identity of a tensor, and how often it was written before


@torch.no_grad()
def check_cuts(model: nn.Module, binding: Binding, pixels: Tensor) -> None:
    """Check that exactly one tensor is alive after every module at which a spec allows a cut.

    Args:
        model: The model; it is not changed.
        binding: The spec bound to the model.
        pixels: One image, (1, channels, height, width); only its shape is used.

    Raises:
        SpecError: several tensors are alive; the message names the step.
        TraceError: the model does not run on this image.
    """
    ends = _ends(model, pixels)
    for step in binding.cuts:
        if ":" not in step and step not in ends:
            raise SpecError(
                f"{binding.spec.file}: after step {step} more than one tensor is alive, so it cannot be cut there"
            )


@torch.no_grad()
def chain_of(model: nn.Module, pixels: Tensor) -> list[str]:
    """The longest chain of modules whose composition is the model; `[]` if other operations lie between modules.

    Raises:
        TraceError: the model does not run on this image.

    >>> chain_of(timm.create_model("resnet18"), torch.zeros(1, 3, 64, 64))[3:6]  # doctest: +SKIP
    ['maxpool', 'layer1.0', 'layer1.1']
    """
    flow, alive, wanted = replay(model, pixels)
    modules = dict(model.named_modules())
    steps = [c for c in flow.calls if c.plain and alive[c.start] == {c.before} and alive[c.end] == {c.after}]
    blocks = {c.path for c in steps if not isinstance(modules[c.path], nn.Sequential | nn.ModuleList)}
    blocks -= {outer for c in steps if has_number(c.path, modules) for outer in around(c.path)}
    longest: dict[Version, list[str]] = {flow.image: []}
    for call in steps:
        parts = call.path.split(".")
        nested = any(".".join(parts[:end]) in blocks for end in range(1, len(parts)))
        if nested or call.before == call.after or call.before not in longest:
            continue
        path = [*longest[call.before], call.path]
        if len(path) > len(longest.get(call.after, [])):
            longest[call.after] = path
    return longest.get(wanted[0], []) if len(wanted) == 1 else []


def has_number(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a module is one of several numbered blocks, as `b1` beside `b2` of the same class.

    Layers without parts, such as `conv1` and `conv2`, are no blocks.

    Args:
        path: The module.
        modules: All modules by path.
    """
    outer, _, name = path.rpartition(".")
    stem, module = name.rstrip("0123456789"), modules[path]
    if not stem or stem == name or not module._modules:
        return False
    beside = modules[outer].named_children()
    return sum(one.rstrip("0123456789") == stem and type(it) is type(module) for one, it in beside) > 1


def _ends(model: nn.Module, pixels: Tensor) -> dict[str, Version]:
    """The modules after which exactly one tensor is alive, with that tensor."""
    flow, alive, _ = replay(model, pixels)
    return {call.path: call.after for call in flow.calls if alive[call.end] == {call.after}}


def replay(
    model: nn.Module, pixels: Tensor, methods: Iterable[str] = ()
) -> tuple["Flow", list[set[Version]], list[Version]]:
    """Record one forward pass of a copy of a model.

    Args:
        model: The model; it is not changed.
        pixels: One image, (1, channels, height, width); only its shape is used.
        methods: Names of methods whose calls are recorded like those of modules.

    Returns:
        The recording; for every number of ops done, the tensors that are alive; and the outputs.

    Raises:
        TraceError: the model does not run on this image.
    """
    net = copy.deepcopy(model).eval()
    like = next(net.parameters(), pixels)
    image = torch.randn(1, *pixels.shape[1:], generator=torch.Generator().manual_seed(0)).to(like)
    flow = Flow(image)
    flow.weights = {id(t): name for name, t in (*net.named_parameters(), *net.named_buffers())}
    try:
        with flow.watching(net, methods), flow:
            output = net(image)
    except Exception as error:  # a model may raise anything on an image of the wrong size
        raise TraceError(
            f"{type(model).__name__} does not run on an image {list(image.shape)}: {first_line(error)}"
        ) from error
    wanted = [flow.version(t) for t in outputs(output) if flow.knows(t)]
    return flow, flow.alive(wanted), wanted


@dataclass(frozen=True)
class Call:
    """One call of a module or method.

    Attributes:
        path: Path of the module or method.
        start: Number of ops before the call.
        end: Number of ops when it returns.
        before: Its first argument, if that is a tensor that depends on the image.
        after: Its output.
        plain: Whether it got nothing but that argument, and returned nothing but a tensor.
        alone: Whether no other argument depends on the image, and its output holds exactly one tensor.
        field: Field or index of the tensor in the output; `None` where the output is the tensor.
        used: The weights that were read during the call, in order.
        whole: Whether every tensor in its output depends on the image.
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
    whole: bool


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which tensors depend on the image, and which ops read and write them."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = [image]  # keeps tensors alive, so that no id is used twice
        self.written = {id(image): 0}
        self.ops: list[tuple[set[Version], set[Version]]] = [(set(), {(id(image), 0)})]
        self.image = (id(image), 0)
        self.calls: list[Call] = []
        self.weights: dict[int, str] = {}  # id -> name of each parameter and buffer
        self.used: list[str] = []  # names of the weights that ops read, in order
        self.behind: dict[int, frozenset[str]] = {}  # id -> names of the weights that a tensor is computed from alone
        self.reads: list[tuple[int, frozenset[str]]] = []  # number of an op, and the weights behind what it reads
        self.entered: dict[str, tuple[int, int, Version | None, bool, bool]] = {}

    def knows(self, value: object) -> bool:
        """Whether a value is a tensor that depends on the image."""
        return isinstance(value, Tensor) and id(value) in self.written

    def tensor(self, version: Version) -> Tensor | None:
        """The tensor of a version, or `None` if it has been overwritten."""
        value = next(t for t in self.kept if id(t) == version[0])
        return value if self.version(value) == version else None

    def version(self, value: Tensor) -> Version:
        """The current version of a tensor."""
        return id(value), self.written[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        reads = {self.version(t) for t in tensors if self.knows(t)}
        self.used += [self.weights[id(t)] for t in tensors if id(t) in self.weights]
        weights = frozenset().union(*(self._weights_behind(t) for t in tensors))
        self.reads.append((len(self.ops), weights))
        out = func(*args, **kwargs)
        made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        self.kept += made
        if reads:
            for value in made:
                self.written[id(value)] = self.written.get(id(value), -1) + 1
            self.ops.append((reads, {self.version(t) for t in made}))
        else:
            self.behind.update({id(value): weights for value in made if id(value) not in self.weights})
        return out

    def _weights_behind(self, value: Tensor) -> frozenset[str]:
        """The names of the weights that a tensor holds, or is computed from without the image."""
        name = self.weights.get(id(value))
        return self.behind.get(id(value), frozenset()) if name is None else frozenset([name])

    def weights_in(self, start: int, end: int) -> set[str]:
        """The names of the weights that the ops from number `start` up to `end` need."""
        return {name for number, names in self.reads if start <= number < end for name in names}

    @contextmanager
    def watching(self, net: nn.Module, methods: Iterable[str] = ()) -> Iterator[None]:
        """Record the calls of all modules, and of the methods of these names."""
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
            call = Call(
                path=path,
                start=start,
                end=len(self.ops),
                before=before,
                after=self.version(first),
                plain=plain and first is out,
                alone=alone,
                field=field,
                used=tuple(self.used[read:]),
                whole=all(self.knows(t) for t in tree_flatten(out)[0] if isinstance(t, Tensor)),
            )
            self.calls.append(call)

    def alive(self, wanted: list[Version]) -> list[set[Version]]:
        """For every number of ops done: the tensors that a later op reads, or that are outputs."""
        now, out = set(wanted), [set(wanted)]
        for reads, writes in reversed(self.ops):
            now = (now - writes) | reads
            out.append(set(now))
        return out[::-1]

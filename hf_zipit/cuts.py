"""Legal cuts of any model: the modules after which exactly one tensor is alive, found by replaying one forward pass."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hf_zipit.errors import TraceError
from hf_zipit.trace import outputs

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
    net = copy.deepcopy(model).eval()
    like = next(net.parameters(), pixels)
    image = torch.zeros(1, *pixels.shape[1:], dtype=like.dtype, device=like.device)
    flow = _Flow(image)
    try:
        with flow.watching(net), flow:
            output = net(image)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
        raise TraceError(f"{type(model).__name__} does not run on an image {list(image.shape)}: {error}") from error
    alive = flow.alive([flow.version(t) for t in outputs(output) if flow.knows(t)])
    ends: dict[str, Version] = {path: version for place, version, path in flow.marks if alive[place] == {version}}
    modules = dict(net.named_modules())
    return [path for path in ends if not _inside(path, ends, modules)]


def _inside(path: str, ends: dict[str, Version], modules: dict[str, nn.Module]) -> bool:
    """Whether a module is the last part of a larger one that ends with the same tensor; containers do not count."""
    parent = path.rpartition(".")[0]
    if isinstance(modules[parent], nn.Sequential | nn.ModuleList):
        return False
    return ends.get(parent) == ends[path]


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which tensors depend on the image, and which op reads and writes them."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = [image]  # so that no id is used twice
        self.written = {id(image): 0}
        self.ops: list[tuple[set[Version], set[Version]]] = [(set(), {(id(image), 0)})]
        self.marks: list[tuple[int, Version, str]] = []  # ops so far, output, module

    def knows(self, value: object) -> bool:
        """Whether this is a tensor that depends on the image."""
        return isinstance(value, Tensor) and id(value) in self.written

    def version(self, value: Tensor) -> Version:
        """The tensor as it is now."""
        return id(value), self.written[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = {self.version(t) for t in tree_flatten((args, kwargs))[0] if self.knows(t)}
        out = func(*args, **kwargs)
        if reads:
            made = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
            for value in made:
                self.kept.append(value)
                self.written[id(value)] = self.written.get(id(value), -1) + 1
            self.ops.append((reads, {self.version(t) for t in made}))
        return out

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        """Hooks that note where each module ends and with which tensor."""
        handles = [
            module.register_forward_hook(lambda _, __, out, path=path: self._mark(path, out))
            for path, module in net.named_modules()
            if path
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mark(self, path: str, out: Any) -> None:
        first = out[0] if isinstance(out, tuple) and out else out
        if isinstance(first, Tensor) and self.knows(first):
            self.marks.append((len(self.ops), self.version(first), path))

    def alive(self, wanted: list[Version]) -> list[set[Version]]:
        """For every number of ops done: the tensors that a later op, or the user, still reads."""
        now, out = set(wanted), [set(wanted)]
        for reads, writes in reversed(self.ops):
            now = (now - writes) | reads
            out.append(set(now))
        return out[::-1]

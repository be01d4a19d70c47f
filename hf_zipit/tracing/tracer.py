"""Trace a model: find the feature spaces of any image model from one forward pass, without a spec.

Every axis of every parameter gets unit ids. A dispatch mode moves them through each op along with the data (`rules`,
`moves`) and records which units are equal, grouped or fixed (`facts`). Connected components give the feature spaces
(`solve`, `groups`).
"""

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from hf_zipit.errors import TraceError
from hf_zipit.tracing.facts import Facts, Label, varying
from hf_zipit.tracing.groups import Axis
from hf_zipit.tracing.moves import NoRule, Op, Outputs
from hf_zipit.tracing.rules import SILENT, rule_for
from hf_zipit.tracing.solve import Local, Noted, Point, Trace, solve
from hf_zipit.transform.permute import randomise


@torch.no_grad()
def trace(model: nn.Module, pixels: Tensor, seed: int = 0) -> Trace:
    """Find the feature spaces of a model that runs on an image.

    The forward pass runs on a copy with random parameters, because fresh parameters are often equal (layer scales,
    zero biases).

    Args:
        model: The model; it is not changed.
        pixels: One image, (1, channels, height, width); only its shape is used.
        seed: Seed of the parameters and the image.

    Raises:
        TraceError: the model does not run on this image, or returns no tensor.

    >>> trace(timm.create_model("resnet18"), torch.zeros(1, 3, 64, 64)).spaces[0].size  # doctest: +SKIP
    64
    """
    net = random_copy(model, seed)
    image = torch.randn(1, *pixels.shape[1:], generator=torch.Generator().manual_seed(seed))
    tracer = Tracer(net)
    try:
        with tracer.watching(), tracer:
            output = net(image)
    except Exception as error:  # a model may raise anything on an image of the wrong size
        raise TraceError(
            f"{type(model).__name__} does not run on an image {list(image.shape)}: {first_line(error)}"
        ) from error
    tracer.facts.where = "output"
    for value in outputs(output):
        for label in tracer.facts.of(value):
            tracer.facts.freeze(label)
    unused = tuple(name for name, value in net.state_dict(keep_vars=True).items() if value not in tracer.seen)
    return solve(tracer.facts, tracer.axes, tracer.local, tracer.points, unused)


def first_line(error: Exception) -> str:
    """The first line of the message of an error, or the name of its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def outputs(output: Any) -> list[Tensor]:
    """The tensors that a model returns: its logits if it names any, otherwise all of them.

    Raises:
        TraceError: there is no tensor.
    """
    if isinstance(output, Mapping):
        logits = {key: value for key, value in output.items() if "logits" in key}
        output = list((logits or dict(output)).values())
    found = [t for t in tree_flatten(output)[0] if isinstance(t, Tensor)]
    if not found:
        raise TraceError(f"the model returns no tensor, only a {type(output).__name__}")
    return found


def random_copy(model: nn.Module, seed: int) -> nn.Module:
    """A float32 copy on the CPU with random parameters and saved buffers. Other buffers keep their values."""
    return randomise(copy.deepcopy(model).cpu().float().eval(), seed)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Moves units through the ops of a model while it runs, and records what happens to them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.net = net
        self.facts = Facts()
        self.axes: dict[Axis, Tensor] = {}
        self.local: dict[str, Local] = {}
        self.points: dict[Point, Noted | None] = {}
        self.numbers: MutableMapping[Tensor, int] = WeakTensorKeyDictionary()
        self.names: MutableMapping[Tensor, list[str]] = WeakTensorKeyDictionary()  # several if weights are tied
        self.seen: MutableMapping[Tensor, bool] = WeakTensorKeyDictionary()
        self.inside = [""]  # paths of the modules that are running
        modules = dict(net.named_modules())
        for name, value in net.state_dict(keep_vars=True).items():  # some norms keep weights as buffers
            if value.is_floating_point():
                owner = modules[name.rpartition(".")[0]]
                kernel = isinstance(owner, nn.modules.conv._ConvNd)  # its spatial axes have no units
                self._label(name, value, 2 if kernel else value.ndim)

    def _label(self, name: str, value: Tensor, axes: int) -> None:
        """Create units along the first `axes` axes of a parameter."""
        if value in self.names:
            first = self.names[value][0]
            self.axes.update({(name, axis): units for (owner, axis), units in self.axes.items() if owner == first})
            self.names[value].append(name)
            return
        labels = []
        for axis in range(min(axes, value.ndim)):
            if value.shape[axis] > 1:
                units = self.axes[name, axis] = self.facts.new(value.shape[axis])
                labels.append(units.view([-1 if d == axis else 1 for d in range(value.ndim)]))
        self.facts.labels[value] = labels
        self.names[value] = [name]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module runs, and record the units in its input and output."""
        handles = []
        for path, module in self.net.named_modules():
            handles.append(module.register_forward_pre_hook(lambda _, args, path=path: self._enter(path, args)))
            handles.append(module.register_forward_hook(lambda _, __, out, path=path: self._leave(path, out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str, args: tuple[Any, ...]) -> None:
        self.inside.append(path)
        self._note(path, "in", args[0] if args else None)

    def _leave(self, path: str, out: Any) -> None:
        self.inside.pop()
        self._note(path, "out", out)

    def _note(self, path: str, side: str, value: Any) -> None:
        again = (path, side) in self.points  # a module that runs twice shows two tensors
        self.points[path, side] = None
        value = value if side == "in" else next((t for t in tree_flatten(value)[0] if isinstance(t, Tensor)), None)
        if isinstance(value, Tensor) and not again:
            number = self.numbers.setdefault(value, len(self.points))
            self.points[path, side] = (number, value.ndim, self.facts.of(value))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        target = args[0] if func._schema.is_mutable and args and isinstance(args[0], Tensor) else None
        before = self.facts.of(target)
        out = func(*args, **kwargs)
        results = [t for t in (out if isinstance(out, list | tuple) else [out]) if isinstance(t, Tensor)]
        op = Op(name, func, args, kwargs, results, self._grouped)
        inputs = op.tensors()
        for value in inputs:
            if value in self.names:
                self.seen[value] = True
        if any(self.facts.of(t) for t in inputs):
            self.facts.where = f"{name} in {self.inside[-1] or 'the model'}"
            self._follow(op, inputs, target, before)
        return out

    def _follow(self, op: Op, inputs: list[Tensor], target: Tensor | None, before: list[Label]) -> None:
        """Apply the rule of an op; without a rule, its inputs become fixed."""
        try:
            found: Outputs = [[] for _ in op.outputs] if op.name in SILENT else rule_for(op)(self.facts, op)
        except (NoRule, RuntimeError, IndexError, KeyError):
            found = [[] for _ in op.outputs]
            self._freeze(inputs)
        if target is not None and target._base is not None and _dims(found[:1]) != _dims([before]):
            self._freeze(inputs)  # an in-place write to a view, which the labels of its base cannot follow
            found = [[] for _ in op.outputs]
        for value, labels in zip(op.outputs, found, strict=True):
            self.facts.labels[value] = labels

    def _freeze(self, inputs: list[Tensor]) -> None:
        for value in inputs:
            for label in self.facts.of(value):
                self.facts.freeze(label)

    def _grouped(self, weight: Tensor, groups: int, channels: Label | None) -> bool:
        """Record a grouped convolution, whose input axis counts inside groups; `False` if its weight is computed."""
        names = self.names.get(weight, [])
        for name in names:
            self.axes.pop((name, 1), None)
            known = self.local.get(name)
            if known is not None and known.units is not None and channels is not None:
                self.facts.same(known.units, channels)
            self.local[name] = Local(groups, channels)
        return bool(names)


def _dims(found: Outputs) -> set[frozenset[int]]:
    return {varying(label) for labels in found for label in labels}

"""Following the outputs of affine maps through a forward pass, tensor by tensor. Both observers of layers do so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__"})


@dataclass(frozen=True)
class AffineMap:
    """A linear layer or convolution with the batch norm and the layer scale that follow it directly.

    A batch norm that follows no layer is an affine map of its own, which maps every channel by itself.

    Attributes:
        module: path of the linear layer or convolution, or of the batch norm that stands alone.
        norm: path of the batch norm.
        scale: name of the parameter that is the layer scale.
    """

    module: str
    norm: str | None = None
    scale: str | None = None

    @property
    def norm_only(self) -> bool:
        """Whether it is a batch norm that follows no layer."""
        return self.module == self.norm


class AffineParameters:
    """Finds the linear maps, batch norms and layer scales of a network by the identity of their tensors."""

    def __init__(self, net: nn.Module) -> None:
        self.linear: dict[int, str] = {}
        self.norms: dict[int, str] = {}
        self.scales: dict[int, str] = {}
        for path, module in net.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                if (weight := module._parameters.get("weight")) is not None:  # a computed one is another at each use
                    self.linear[id(weight)] = path
            elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats:
                self.norms[id(module.running_mean)] = path
            else:
                own = {f"{path}.{n}" if path else n: p for n, p in module.named_parameters(recurse=False)}
                self.scales.update({id(p): name for name, p in own.items() if p.ndim == 1})

    def applied(self, function: str, args: Sequence[Any]) -> AffineMap | None:
        """The linear map, or the batch norm, that a function call applies."""
        if len(args) < 2:
            return None
        if function == "batch_norm":
            norm = self.norms.get(id(args[1]))
            return None if norm is None else AffineMap(norm, norm)
        path = self.linear.get(id(args[1])) if function in ("conv2d", "linear") else None
        return None if path is None else AffineMap(path)

    def extended(self, function: str, args: Sequence[Any], value: Tensor, affine: AffineMap) -> AffineMap | None:
        """The affine map together with the norm or scale that a call applies to its output.

        Args:
            function: name of the called function.
            args: its positional arguments.
            value: the map's output, which is one of them.
            affine: the map.

        Returns:
            `None` if the call applies no norm or scale, or one too many.
        """
        if affine.norm_only:
            return None
        plain = affine.norm is None and affine.scale is None
        if function == "batch_norm" and len(args) > 1 and args[0] is value and plain:
            norm = self.norms.get(id(args[1]))
            return None if norm is None else replace(affine, norm=norm)
        if function in PRODUCTS and affine.scale is None:
            scale = next((self.scales[id(a)] for a in args if id(a) in self.scales), None)
            fits = value.shape[-1:] == next((a.shape for a in args if id(a) in self.scales), None)
            return replace(affine, scale=scale) if scale is not None and fits else None
        return None


@dataclass(eq=False)
class Output:
    """The output of an affine map.

    Attributes:
        affine: the map, with the norm and the scale that the output has passed so far.
        value: the tensor; `None` after it was overwritten.
    """

    affine: AffineMap
    value: Tensor | None


AnyOutput = TypeVar("AnyOutput", bound=Output)


@dataclass(frozen=True)
class Call:
    """A call of a torch function: its name, its positional arguments and its result."""

    function: str
    args: tuple[Any, ...]
    result: Any


class OutputFollower(TorchFunctionMode, Generic[AnyOutput]):
    """Sees every call of a torch function that applies an affine map of a network, or reads an output of one.

    Subclasses say what happens then. `outputs` holds the outputs that are followed.

    Args:
        net: the network.
        parameters: those of the network, if they are known.
    """

    def __init__(self, net: nn.Module, parameters: AffineParameters | None = None) -> None:
        super().__init__()
        self.parameters = parameters or AffineParameters(net)
        self.outputs: list[AnyOutput] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        affine = self.parameters.applied(func.__name__, args)
        if affine is not None:
            self.on_map_input(affine, func.__name__, args)
        given = _flat([*args, *(kwargs or {}).values()])
        read = [output for output in self.outputs if output.value is not None and any(a is output.value for a in given)]
        versions = [output.value._version for output in read if output.value is not None]
        result = func(*args, **(kwargs or {}))
        if not any(isinstance(value, Tensor) for value in _flat([result])):
            return result  # a shape, a dtype
        call = Call(func.__name__, args, result)
        self.on_call(func.__name__)
        for output, version in zip(read, versions, strict=True):
            self.on_read(output, call, version)
        if affine is not None:
            self.on_map(affine, call, read)
        return result

    def on_map_input(self, affine: AffineMap, function: str, args: tuple[Any, ...]) -> None:
        """A call is about to apply an affine map."""

    def on_call(self, function: str) -> None:
        """A call of a function has returned tensors."""

    def on_read(self, output: AnyOutput, call: Call, version: int) -> None:
        """A call has read an output, which had this version before."""
        raise NotImplementedError

    def on_map(self, affine: AffineMap, call: Call, read: Sequence[AnyOutput]) -> None:
        """A call has applied an affine map; `read` are the outputs of others that it has read."""
        raise NotImplementedError


def _flat(values: Sequence[Any]) -> list[Any]:
    """The values, and in place of lists and tuples what they hold."""
    return [held for value in values for held in (value if isinstance(value, list | tuple) else (value,))]

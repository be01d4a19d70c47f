"""What a model computes with, as a hash: equal hashes, equal activations, in this process and in any other."""

import enum
import functools
import hashlib
import json
import types
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hf_zipit import __version__
from hf_zipit.data.hashing import tensor_digest

# packages whose code the version stands for; the code of all others is part of the hash
LIBRARIES = ("torch", "torchvision", "timm", "transformers", "segmentation_models_pytorch", "numpy", "pillow")
_VERSIONED = frozenset({*LIBRARIES, "PIL", "builtins", "functools", "collections", "hf_zipit"})
# of a module: handled apart, or without effect on its output in eval mode
_SKIPPED = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"})
_NAMES = frozenset({"_name_or_path", "name_or_path", "_commit_hash"} | {"pretrained_cfg", "default_cfg"})  # of origin
DEPTH = 20  # beyond it, values are known by their type alone
_PLAIN = (type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum, np.generic)
_PLAIN_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)


def versions() -> dict[str, str]:
    """The versions of everything that computes activations."""
    found = {"hf_zipit": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def content_of(value: Any) -> str:
    """A hash of a model, or of a function that prepares images: its tensors, settings and code.

    Two modules with equal weights differ if one of their attributes or hooks does, or the code of a class or function
    that does not come from a library.

    >>> content_of(nn.LayerNorm(2)) == content_of(nn.LayerNorm(2, eps=1e-3))
    False
    """
    return hashlib.sha256(json.dumps(_Describer().of(value), sort_keys=True).encode()).hexdigest()


class _Describer:
    """Describes values as nested lists of texts; what occurs again is described by its number."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no later value takes the id of an earlier one

    def of(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, (*_PLAIN, *_PLAIN_OF_TORCH)):
            return repr(value)
        if isinstance(value, Tensor):
            return "meta" if value.is_meta else tensor_digest([("", value)])
        if isinstance(value, np.ndarray):
            return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
        if id(value) in self.seen:
            return f"#{self.seen[id(value)]}"
        self.seen[id(value)] = len(self.seen)
        self.kept.append(value)
        if depth > DEPTH:
            return _name(type(value))
        return self._compound(value, depth + 1)

    def _compound(self, value: Any, depth: int) -> Any:
        if isinstance(value, nn.Module):
            return self._module(value, depth)
        if isinstance(value, type):
            return [_name(value), self._code(value, depth)]
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, types.MethodType):
            return [self.of(value.__func__, depth), self.of(value.__self__, depth)]
        if isinstance(value, functools.partial):
            return [self.of(part, depth) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, Mapping):
            return [[self.of(k, depth), self.of(v, depth)] for k, v in value.items() if k not in _NAMES]
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.of(part, depth)) for part in value)
        if isinstance(value, list | tuple):
            return [self.of(part, depth) for part in value]
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            return getattr(value, "__qualname__", value.__name__)
        return [self.of(type(value), depth), self._attributes(vars(value) if hasattr(value, "__dict__") else {}, depth)]

    def _module(self, module: nn.Module, depth: int) -> Any:
        tensors = [*module._parameters.items(), *module._buffers.items()]  # also those that are never saved
        return [
            self.of(type(module), depth),
            [[name, self.of(value, depth)] for name, value in tensors],
            self._attributes({k: v for k, v in vars(module).items() if k not in _SKIPPED}, depth),
            [[name, self.of(child, depth=0)] for name, child in module._modules.items()],
        ]

    def _attributes(self, values: Mapping[str, Any], depth: int) -> Any:
        out = []
        for name, value in sorted(values.items()):
            if name in _NAMES or "backward" in name or "state_dict" in name:
                continue
            if name.startswith("_forward_"):  # hooks, under numbers that count the hooks of the whole process
                value = list(value.values()) if isinstance(value, Mapping) else value
            out.append([name, self.of(value, depth)])
        return out

    def _function(self, function: types.FunctionType, depth: int) -> Any:
        cells = [_content(cell) for cell in function.__closure__ or ()]
        held = self.of([function.__defaults__, function.__kwdefaults__, cells], depth)
        if _versioned(function.__module__):
            return [_name(function), held]
        names = _names(function.__code__)
        used = {name: function.__globals__[name] for name in names if name in function.__globals__}
        return [self._bytecode(function.__code__, depth), held, self._attributes(used, depth)]

    def _bytecode(self, code: types.CodeType, depth: int) -> Any:
        constants = [
            self._bytecode(part, depth) if isinstance(part, types.CodeType) else self.of(part, depth)
            for part in code.co_consts
        ]
        return [code.co_code.hex(), list(code.co_names), constants]

    def _code(self, cls: type, depth: int) -> Any:
        """The methods that a class has from no library."""
        own = [base for base in cls.__mro__ if not _versioned(base.__module__)]
        found = [(name, part) for base in own for name, part in vars(base).items()]
        return [[name, self.of(part, depth)] for name, part in found if isinstance(part, types.FunctionType)]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is filled later
        return None


def _names(code: types.CodeType) -> Iterable[str]:
    """The names that a function and those inside it look up, in order."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return dict.fromkeys([*code.co_names, *inner])


def _versioned(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _VERSIONED


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"

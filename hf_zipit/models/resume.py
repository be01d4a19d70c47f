# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Run a model from where the shared trunk ends. Copied into merged repositories.

The layers that the trunk replaces stay in the model as empty modules that return the trunk's outputs, so that the code
around them runs unchanged.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_computed: ContextVar[Sequence[Tensor]] = ContextVar("outputs of the trunk's steps")


def around(path: str) -> list[str]:
    """The paths of the modules around a module or a tensor, from the outermost on.

    >>> around("layers.0.weight")
    ['layers', 'layers.0']
    """
    return [path[:place] for place, letter in enumerate(path) if letter == "."]


class Precomputed:
    """Replaces a step's `forward` with the output the trunk already computed.

    Args:
        number: index of the step in the trunk.
        field: field or index that holds the tensor, if the step returns more than a tensor.
    """

    def __init__(self, number: int, field: int | str | None = None) -> None:
        self.number = number
        self.field = field

    def __call__(self, *_: Any, **__: Any) -> Any:
        """The output of the step, whatever its arguments."""
        value = _computed.get()[self.number]
        if isinstance(self.field, int):
            return (*[None] * self.field, value)
        return value if self.field is None else SingleField(self.field, value)


class SingleField:
    """An output object with a tensor in one field; every other field is `None`."""

    def __init__(self, field: str, value: Tensor) -> None:
        vars(self)[field] = value

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, key: int | str) -> Tensor | None:
        found: Tensor | None = next(iter(vars(self).values())) if key == 0 else getattr(self, str(key))
        return found


def tensor_of(output: Any) -> tuple[Tensor, int | str | None]:
    """The only tensor in a step's output, and the field or index that holds it; `None` if the output is the tensor.

    Raises:
        TypeError: the output holds no tensor, or more than one value.
    """
    if isinstance(output, Tensor):
        return output, None
    entries = output.items() if isinstance(output, Mapping) else enumerate(output if _is_sequence(output) else ())
    full = [(key, value) for key, value in entries if value is not None and not (_is_sequence(value) and not value)]
    if len(full) != 1 or not isinstance(full[0][1], Tensor):
        raise TypeError(f"a {type(output).__name__} does not hold exactly one tensor")
    return full[0][1], full[0][0]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple)


def find_step(model: nn.Module, step: str) -> nn.Module:
    """The module that runs a step: a submodule, or a module whose `forward` is a method of the model.

    Such a module holds the parameters beside the method, and shares them with the model; its submodules are empty.

    >>> find_step(timm.create_model("vit_tiny_patch16_224"), "_pos_embed")(tokens)  # doctest: +SKIP
    """
    owner, method = method_of(model, step)
    if not method:
        return owner
    view = copy.copy(owner)
    vars(view)["_modules"] = {name: _emptied(child) for name, child in owner._modules.items()}
    vars(view)["_parameters"] = dict(owner._parameters)
    vars(view)["_buffers"] = dict(owner._buffers)
    vars(view)["forward"] = MethodType(getattr(type(owner), method), view)
    return view


def method_of(model: nn.Module, step: str) -> tuple[nn.Module, str]:
    """The module of a step and `""`, or, if the step is a method, the module it belongs to and the method's name."""
    path, _, name = step.rpartition(".")
    owner = model.get_submodule(path)
    return (owner._modules[name] or owner, "") if name in owner._modules else (owner, name)


def weights_of(model: nn.Module, step: str) -> list[str]:
    """The names in the model's state dict that belong to a step."""
    path = step.rpartition(".")[0]
    _, method = method_of(model, step)
    if not method:
        return [name for name in model.state_dict() if name.startswith(f"{step}.")]
    return [name for name in model.state_dict() if name.rpartition(".")[0] == path]


def resume_after(model: nn.Module, steps: Sequence[str], fields: Mapping[str, int | str] | None = None) -> nn.Module:
    """Remove the weights of the trunk's steps from a model, in place; the steps then return the trunk's outputs.

    The modules keep their attributes, and the code around them runs unchanged. Their parameters become empty tensors,
    which are never saved: models read a dtype and a device from them.

    Args:
        model: the model, changed in place.
        steps: the steps of the trunk: paths of modules, or of methods that use the parameters beside them.
        fields: for steps that return more than a tensor, the field or index that holds it.

    Returns:
        The same model. Call it inside `trunk_outputs`.

    >>> head = resume_after(model, ["conv1", "bn1"])  # doctest: +SKIP
    >>> with trunk_outputs([conv1_output, bn1_output]):  # doctest: +SKIP
    ...     head(pixels)
    """
    for number, step in enumerate(steps):
        owner, method = method_of(model, step)
        for inner in [owner] if method else owner.modules():
            empty(inner)
        vars(owner)[method or "forward"] = Precomputed(number, (fields or {}).get(step))
    return model


@contextmanager
def trunk_outputs(outputs: Sequence[Tensor]) -> Iterator[None]:
    """Make the trunk's outputs, one tensor per step, available to the models of `resume_after` called inside."""
    token = _computed.set(outputs)
    try:
        yield
    finally:
        _computed.reset(token)


def _emptied(module: nn.Module | None) -> nn.Module | None:
    """A copy with all attributes and no weights."""
    if module is None:
        return None
    memo = {id(value): value for value in (*module.parameters(), *module.buffers())}  # weights are not copied
    out = copy.deepcopy(module, dict(memo))
    for inner in out.modules():
        empty(inner)
    return out


def empty(module: nn.Module) -> None:
    """Replace the parameters and buffers of a module by empty tensors that are not saved."""
    if "track_running_stats" in vars(module):
        vars(module)["track_running_stats"] = False  # an emptied batch norm has no statistics to load or re-estimate
    held: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
    if any(value is not None for value in held.values()):
        vars(module)["_is_hf_initialized"] = True  # transformers has no weights to draw here
    for name, value in held.items():
        if value is not None:
            module._parameters.pop(name, None)
            module._buffers.pop(name, None)
            module.register_buffer(name, torch.empty(0, dtype=value.dtype, device=value.device), persistent=False)


class Steps(nn.Module):
    """Modules that run one after the other, under the paths they have in a larger model.

    >>> Steps({"conv1": nn.Conv2d(3, 8, 3), "layer1.0": nn.ReLU()}).paths
    ('conv1', 'layer1.0')
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(modules)
        for path, module in modules.items():
            holder: nn.Module = self
            *above, name = path.split(".")
            for part in above:
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.add_module(name, module)

    def outputs(self, value: Tensor) -> Iterator[Tensor]:
        """Yield the output of every step as soon as it is computed."""
        for path in self.paths:
            value, _ = tensor_of(self.get_submodule(path)(value))
            yield value

    def forward(self, value: Tensor) -> Tensor:
        """The output of the last step."""
        return list(self.outputs(value))[-1]

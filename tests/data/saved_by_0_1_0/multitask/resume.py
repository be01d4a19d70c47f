# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Models that go on where a shared trunk has stopped. A leaf file: it is copied into merged repositories."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

_done: ContextVar[Sequence[Tensor]] = ContextVar("the outputs of the trunk's steps")


class Done:
    """Stands where the `forward` of a step was: the trunk has run the step, this is its output.

    `field` is the field or index of a step that returns it inside of something larger.
    """

    def __init__(self, number: int, field: int | str | None = None) -> None:
        self.number, self.field = number, field

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Whatever the step is given, its output is already there."""
        value = _done.get()[self.number]
        if isinstance(self.field, int):
            return (*[None] * self.field, value)
        return value if self.field is None else Fields(self.field, value)


class Fields:
    """An output object in which one field holds a tensor and all others are empty."""

    def __init__(self, field: str, value: Tensor) -> None:
        vars(self)[field] = value

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __getitem__(self, key: int | str) -> Tensor | None:
        found: Tensor | None = next(iter(vars(self).values())) if key == 0 else getattr(self, str(key))
        return found


def tensor_of(output: Any) -> tuple[Tensor, int | str | None]:
    """The only tensor in what a step returns, and the field or index that holds it; `None` where it is all there is.

    Raises:
        TypeError: it holds no tensor, or more than one.
    """
    if isinstance(output, Tensor):
        return output, None
    entries = output.items() if isinstance(output, Mapping) else enumerate(output if _listed(output) else ())
    full = [(key, value) for key, value in entries if value is not None and not (_listed(value) and not value)]
    if len(full) != 1 or not isinstance(full[0][1], Tensor):
        raise TypeError(f"a {type(output).__name__} does not hold exactly one tensor")
    return full[0][1], full[0][0]


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)


def find_step(model: nn.Module, step: str) -> nn.Module:
    """The module of a step: one of the model's, or one that runs a method of it with the parameters around it.

    >>> find_step(timm.create_model("vit_tiny_patch16_224"), "_pos_embed")(tokens)  # doctest: +SKIP
    """
    owner, method = method_of(model, step)
    if not method:
        return owner
    inside = copy.copy(owner)
    vars(inside)["_modules"] = {name: _emptied(child) for name, child in owner._modules.items()}
    vars(inside)["_parameters"], vars(inside)["_buffers"] = dict(owner._parameters), dict(owner._buffers)
    vars(inside)["forward"] = MethodType(getattr(type(owner), method), inside)
    return inside


def method_of(model: nn.Module, step: str) -> tuple[nn.Module, str]:
    """The module of a step and, if the step is a method of it and no module of its own, the method's name."""
    path, _, name = step.rpartition(".")
    owner = model.get_submodule(path)
    return (owner._modules[name] or owner, "") if name in owner._modules else (owner, name)


def weights_of(model: nn.Module, step: str) -> list[str]:
    """The names in the model's state dict that belong to a step."""
    path, method = step.rpartition(".")[0], method_of(model, step)[1]
    if not method:
        return [name for name in model.state_dict() if name.startswith(f"{step}.")]
    return [name for name in model.state_dict() if name.rpartition(".")[0] == path]


def resumed(model: nn.Module, steps: Sequence[str], fields: Mapping[str, int | str] | None = None) -> nn.Module:
    """Take the weights of the named steps out of a model, in place, and let them return what the trunk has computed.

    The modules stay where they are with their attributes, so that whatever surrounds them runs unchanged. Their
    parameters become empty tensors that are never saved: models ask them for their dtype and device.

    Args:
        steps: paths of modules, or of methods that use the parameters beside them.
        fields: where the steps' tensors lie in what they return, for those that return more than a tensor.

    >>> head = resumed(model, ["conv1", "bn1"])  # doctest: +SKIP
    >>> with after([conv1_output, bn1_output]): head(pixels)  # doctest: +SKIP
    """
    for number, step in enumerate(steps):
        owner, method = method_of(model, step)
        for inner in [owner] if method else owner.modules():
            _empty(inner)
        vars(owner)[method or "forward"] = Done(number, (fields or {}).get(step))
    return model


@contextmanager
def after(outputs: Sequence[Tensor]) -> Iterator[None]:
    """What resumed models called inside find in place of their steps: one tensor for each step."""
    token = _done.set(outputs)
    try:
        yield
    finally:
        _done.reset(token)


def _emptied(module: nn.Module | None) -> nn.Module | None:
    """A copy with all attributes and no weights."""
    if module is None:
        return None
    kept = {id(value): value for value in (*module.parameters(), *module.buffers())}
    out = copy.deepcopy(module, dict(kept))  # the weights themselves are not copied
    for inner in out.modules():
        _empty(inner)
    return out


def _empty(module: nn.Module) -> None:
    if "track_running_stats" in vars(module):
        vars(module)["track_running_stats"] = False  # a batch norm that has none to load or to re-estimate
    held: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
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
        """The output of every step, as soon as it is there."""
        for path in self.paths:
            value, _ = tensor_of(self.get_submodule(path)(value))
            yield value

    def forward(self, value: Tensor) -> Tensor:
        """The output of the last step."""
        return list(self.outputs(value))[-1]

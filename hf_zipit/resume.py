# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Models that go on where a shared trunk has stopped. A leaf file: it is copied into merged repositories."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_done: ContextVar[Sequence[Tensor]] = ContextVar("the outputs of the trunk's steps")


class Done:
    """Stands where a step's `forward` was: the trunk has run the step, this is its output."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        """Whatever the step is given, its output is already there."""
        return _done.get()[self.number]


def resumed(model: nn.Module, steps: Sequence[str]) -> nn.Module:
    """Take the named modules' weights out of a model, in place, and let them return what the trunk has computed.

    The modules stay where they are with their attributes, so that whatever surrounds them runs unchanged. Their
    parameters become empty tensors that are never saved: models ask them for their dtype and device.

    >>> head = resumed(model, ["conv1", "bn1"])  # doctest: +SKIP
    >>> with after([conv1_output, bn1_output]): head(pixels)  # doctest: +SKIP
    """
    for number, step in enumerate(steps):
        module = model.get_submodule(step)
        for inner in module.modules():
            _empty(inner)
        vars(module)["forward"] = Done(number)
    return model


@contextmanager
def after(outputs: Sequence[Tensor]) -> Iterator[None]:
    """What resumed models called inside find in place of their steps: one tensor for each step."""
    token = _done.set(outputs)
    try:
        yield
    finally:
        _done.reset(token)


def is_empty(module: nn.Module) -> bool:
    """Whether the weights of this module were taken out by `resumed`."""
    return "without_weights" in vars(module)


def _empty(module: nn.Module) -> None:
    vars(module)["without_weights"] = True
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
            value = self.get_submodule(path)(value)
            yield value

    def forward(self, value: Tensor) -> Tensor:
        """The output of the last step."""
        return list(self.outputs(value))[-1]

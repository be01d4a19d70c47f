# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A model as a chain of steps with one tensor between them. Copied into every merged repository."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def classify_first_and_mean(x: Tensor, classifier: nn.Module, skip: int | None = None) -> Tensor:
    """Classify the first token concatenated with the mean of the patch tokens.

    Args:
        x: `(B, tokens, D)`.
        classifier: reads `(B, 2 D)`.
        skip: register tokens after the first, which the mean leaves out.
    """
    logits: Tensor = classifier(torch.cat([x[:, 0], x[:, 1 + (skip or 0) :].mean(1)], -1))
    return logits


def classify_tokens(x: Tensor, *classifiers: nn.Module) -> Tensor:
    """The mean of the logits of several classifiers, of which the i-th reads the i-th token of `x (B, tokens, D)`."""
    return torch.stack([classify(x[:, i]) for i, classify in enumerate(classifiers)]).mean(0)


OPS: dict[str, Callable[..., Tensor]] = {
    "first_token": lambda x: x[:, 0],
    "mean_tokens": lambda x: x.mean(1),
    "mean_patches": lambda x: x[:, 1:].mean(1),
    "mean_map": lambda x: x.mean((-2, -1)),
    "classify_tokens": classify_tokens,
    "classify_first_and_mean": classify_first_and_mean,
}


def run_steps(net: nn.Module, steps: Sequence[str], value: Tensor, size: Sequence[int]) -> Tensor:
    """Run steps one after the other: module paths, methods of the backbone (`call:`), and functions (`op:`).

    Parentheses hold the arguments besides the tensor: `layers.0(resolution=$image)`. `$image` is `size`, `$grid` the
    (height, width) of the grid of tokens, and `$config.name` an attribute of the backbone's config. A bare name is a
    module that an `op:` uses. If a step returns several values, the first is passed on.

    Args:
        net: the backbone.
        steps: the steps in running order.
        value: input of the first step.
        size: (height, width) of the image.
    """
    for step in steps:
        kind, _, name = step_name(step).rpartition(":")
        function = OPS[name] if kind == "op" else getattr(net, name) if kind else net.get_submodule(name)
        given = [part.partition("=") for part in step[len(step_name(step)) :].strip("()").split(", ") if part]
        modules = [net.get_submodule(key) for key, equals, _ in given if not equals]
        arguments = {key: _argument(text, net, value, size) for key, equals, text in given if equals}
        out = function(value, *modules, **arguments)
        if isinstance(out, Mapping):
            out = tuple(held for held in out.values() if held is not None)
        value = out[0] if isinstance(out, tuple) else out
    return value


def step_name(step: str) -> str:
    """The name of a step without its arguments.

    >>> step_name("layers.0(resolution=$image)")
    'layers.0'
    """
    return step.partition("(")[0]


def _argument(text: str, net: nn.Module, value: Tensor, size: Sequence[int]) -> Any:
    height, width = size
    if text == "$image":
        return (height, width)
    if text == "$grid":  # every patch size that fits this number of tokens gives the same grid
        grids = ((-(-height // k), -(-width // k)) for k in range(1, max(height, width) + 1))
        return next((grid for grid in grids if grid[0] * grid[1] == value.shape[1]), None)
    return getattr(net.config, text.removeprefix("$config."), None) if text.startswith("$config.") else None


def part(net: nn.Module, owned: Sequence[str]) -> nn.Module:
    """Reduce a network, in place, to the named modules and parameters, which keep their names.

    Modules without weights stay, because a method that is a step may call them (a dropout, an activation).
    """
    bare = {path for path, module in net.named_modules() if not [*module.parameters(), *module.buffers()]}
    for path, module in reversed(list(net.named_modules())):
        inside = any(f"{path}.".startswith(f"{name}.") for name in owned)
        above = not path or any(name.startswith(f"{path}.") for name in owned)
        if not inside and not above and path not in bare:
            parent, _, name = path.rpartition(".")
            del net.get_submodule(parent)._modules[name]
        elif not inside:
            for name in list(module._parameters):
                if (f"{path}.{name}" if path else name) not in owned:
                    module._parameters[name] = None
    return net

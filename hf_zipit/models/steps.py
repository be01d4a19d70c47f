# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""A model as a chain of steps with one tensor between them. Copied into every merged repository."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .rerun import Outline, run_part


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


def run_steps(
    net: nn.Module, steps: Sequence[str], value: Tensor, size: Sequence[int], outline: Outline | None = None
) -> Tensor:
    """Run steps one after the other: module paths, methods of the backbone (`call:`), and functions (`op:`).

    Parentheses hold the arguments besides the tensor: `layers.0(resolution=$image)`. `$image` is `size`, `$grid` the
    (height, width) of the grid of tokens, and `$config.name` an attribute of the backbone's config. A bare name is a
    module that an `op:` uses. If a step returns several values, the first is passed on. With `after=`, steps are parts
    of the backbone's own forward: `layers.1(after=layers.0)`; see `run_part`.

    Args:
        net: the backbone.
        steps: the steps in running order.
        value: input of the first step.
        size: (height, width) of the image.
        outline: of the backbone, which it has prepared; only for steps with `after=`.
    """
    first = interrupted(steps)
    if first is not None and outline is not None:
        last = step_name(steps[-1])
        return run_part(net, outline, first, None if ":" in last else last, value, size)
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


def step_runs(
    net: nn.Module, steps: Sequence[str], size: Sequence[int], outline: Outline | None = None
) -> list[Callable[[Tensor], Tensor]]:
    """The steps of a backbone as functions from the output of the step before to that of the step.

    Args:
        net: the backbone.
        steps: the steps in running order.
        size: (height, width) of the image.
        outline: as for `run_steps`.
    """
    return [partial(run_steps, net, [step], size=size, outline=outline) for step in steps]


def interrupted(steps: Sequence[str]) -> str | None:
    """The module after which the first step starts, if steps are parts of the backbone's own forward.

    >>> interrupted(["layers.1(after=layers.0)"])
    'layers.0'
    """
    _, _, first = steps[0].partition("(after=") if steps else ("", "", "")
    return first.rstrip(")") or None


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

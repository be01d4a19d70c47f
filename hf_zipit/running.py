"""Helpers for running models: the device, a copy to run, and the logits in an output."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.text import first_line

STATISTICS = ("running_mean", "running_var")  # how the names of a batch norm's statistics end, which are no weights
ANSWERS = ("logits", "predicted_depth", "reconstruction", "last_hidden_state")  # the fields that hold a prediction


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output, which is a tensor or an output object of transformers.

    If the output has no logits, its first entry is returned instead.

    Raises:
        SourceError: the output holds no tensor.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    if not isinstance(output, Tensor):
        raise SourceError(f"the model returns a {type(output).__name__} without logits")
    return output


def tensors_in(output: object) -> Iterator[Tensor]:
    """All tensors in a model's output, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | list | tuple):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_in(value)


def device_of(device: str | None, default: torch.device | str) -> torch.device:
    """The device that the user named, or the default.

    Args:
        device: e.g. `cpu` or `cuda:0`; `None` selects the default.
        default: the device to use if the user named none.

    Raises:
        OptionError: the device does not exist on this machine, or computes nothing.
    """
    try:
        found = torch.device(device or default)
        torch.ones(1, device=found).item()  # which fails on a device of shapes only
    except (RuntimeError, AssertionError, ImportError) as error:
        raise OptionError(f"cannot run on device '{device or default}': {first_line(error)}") from None
    return found


def working_copy(model: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """A copy to run: on the device, in eval mode, in float32 or wider.

    Args:
        model: the model; it is not changed.
        device: where the copy is placed.
        channels_last: store convolution weights channels last, which is faster.
    """
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    out = copy.deepcopy(model).eval().to(device, dtype)
    return out.to(memory_format=torch.channels_last) if channels_last else out

"""A model as a chain of steps: where it may be cut, what each cut costs, and running a part of it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.errors import OptionError, SourceError


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: a tensor, or an output object of transformers.

    Of a model without classes it is the first tensor of the output.
    """
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    if not isinstance(output, Tensor):
        raise SourceError(f"the model returns a {type(output).__name__} without logits")
    return output


def device_of(device: str | None, default: torch.device | str) -> torch.device:
    """The device a user named, or the default.

    Raises:
        OptionError: there is no such device on this machine.
    """
    try:
        found = torch.device(device or default)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"cannot run on device '{device}': {str(error).splitlines()[0]}") from None
    return found


def working_copy(model: nn.Module, device: torch.device, channels_last: bool = True) -> nn.Module:
    """A copy to run: at least float32, in eval mode, channels last unless told otherwise (it is faster)."""
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    out = copy.deepcopy(model).eval().to(device, dtype)
    return out.to(memory_format=torch.channels_last) if channels_last else out

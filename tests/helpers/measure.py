"""What a model costs to run."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(run: Callable[..., object], *args: object, **kwargs: object) -> int:
    """FLOPs of one call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*args, **kwargs)
    return counter.get_total_flops()

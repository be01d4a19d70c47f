"""What a model costs to run."""

from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def flops(run: Callable[..., object], *args: object, **kwargs: object) -> int:
    """FLOPs of one call, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run(*args, **kwargs)
    return counter.get_total_flops()


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside it; `peak` is the most that lived at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if sum(size for _, size in self.live.values()) > self.peak:
            self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
            self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out

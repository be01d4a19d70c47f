"""Hashes of tensors, by which equal contents are known again."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def digest(tensors: Iterable[tuple[object, Tensor]]) -> str:
    """The SHA-256 of named tensors: names, types, shapes and bytes.

    >>> digest([("x", torch.zeros(2))])[:12] == digest([("x", torch.zeros(2))])[:12]
    True
    """
    out = hashlib.sha256()
    for name, tensor in tensors:
        out.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        out.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return out.hexdigest()

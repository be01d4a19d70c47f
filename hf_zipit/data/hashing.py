"""Hashes of tensors, to recognise equal contents."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def tensor_digest(tensors: Iterable[tuple[object, Tensor]]) -> str:
    """The SHA-256 of named tensors: names, types, shapes and bytes.

    >>> tensor_digest([("x", torch.zeros(2))]) == tensor_digest([("x", torch.ones(2))])
    False
    """
    out = hashlib.sha256()
    for name, tensor in tensors:
        out.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        out.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return out.hexdigest()

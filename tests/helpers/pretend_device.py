"""A device without hardware, `pretend:0`. Its tensors hold CPU tensors; mixing the two is an error, as it is on a GPU.

Importing this registers the device in the process, for good.
"""

import functools
import re
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("pretend")
HELD: dict[int, Tensor] = {}  # storage -> the tensor that it stands for; storages are shared by shallow copies
MIXED = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::index", "aten::_index")  # take CPU tensors too
NATIVE = re.compile("fused_attention|::detach$|::alias$")  # these are right as they are
VIEWS = ("aten::view", "aten::_unsafe_view", "aten::_reshape_alias")


def is_pretend(value: object) -> bool:
    """Whether it is a tensor of this device."""
    return isinstance(value, Tensor) and value.device.type == "pretend"


def put(raw: Tensor) -> Tensor:
    """A tensor of this device that holds a CPU tensor."""
    out = torch._C._acc.create_empty_tensor(tuple(raw.shape), raw.dtype)
    HELD[out.untyped_storage()._cdata] = raw
    return out


def get(value: Any) -> Any:
    """The CPU tensor that a tensor of this device holds; anything else as it is."""
    if isinstance(value, torch.device) and value.type == "pretend":
        return torch.device("cpu")
    return HELD[value.untyped_storage()._cdata] if is_pretend(value) else value


def run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operator of torch on what its arguments hold."""
    name, leaves = op._schema.name, tree_leaves((args, kwargs))
    mine = [x for x in leaves if is_pretend(x)]
    foreign = [x for x in leaves if isinstance(x, Tensor) and x.dim() and not is_pretend(x)]
    if mine and foreign and not name.startswith(MIXED):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    if name == "aten::_local_scalar_dense":
        return get(args[0]).item()
    if name == "aten::_copy_from":
        get(args[1]).copy_(get(args[0]))
        return args[1]
    if name in VIEWS:  # strides are not those of the tensor that is held
        return put(get(args[0]).reshape(args[1]))
    found = op(*tree_map(get, args), **tree_map(get, kwargs))
    if name == "aten::_to_copy" and getattr(kwargs.get("device"), "type", "pretend") != "pretend":
        return found
    same = {id(get(x)): x for x in mine}
    return tree_map(lambda x: same.get(id(x)) if id(x) in same else put(x) if isinstance(x, Tensor) else x, found)


def deepcopy(self: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy what is held; the storage itself is empty."""
    return memo.setdefault(id(self), self.detach().clone()) if is_pretend(self) else plain_deepcopy(self, memo)


plain_deepcopy = Tensor.__deepcopy__
Tensor.__deepcopy__ = deepcopy  # type: ignore[method-assign]
everything, explicit = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
everything.fallback(run, "PrivateUse1")
found = torch._C._dispatch_has_kernel_for_dispatch_key
for name in torch._C._dispatch_get_all_op_names():
    seen = not name.startswith("aten::") or NATIVE.search(name) or not found(name, "CompositeExplicitAutograd")
    if not seen:  # by the fallback
        packet, _, overload = name.removeprefix("aten::").partition(".")
        operator = getattr(getattr(torch.ops.aten, packet.removesuffix("_overrideable")), overload or "default")
        explicit.impl(name.removeprefix("aten::"), functools.partial(run, operator), "PrivateUse1")

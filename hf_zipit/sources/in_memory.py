"""Modules in memory that no library can rebuild: as sources where the user describes them, else refused."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hf_zipit.errors import SourceError
from hf_zipit.sources.source import KINDS, NOWHERE, Source
from hf_zipit.sources.states import check_finite

MEMORY = "memory"  # the library of modules that none can rebuild
_log = logging.getLogger("hf_zipit")


def module_source(
    model: nn.Module,
    kind: str,
    *,
    name: str | None = None,
    labels: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Source:
    """Any module that takes a batch of images, as a source. Merges with it run, but cannot be saved.

    Args:
        model: called with pixels `(B, 3, H, W)`; it is never changed.
        kind: its task: `image-classification`, `image-segmentation`, `depth-estimation`, `object-detection`,
            `image-to-image` or `image-feature-extraction`.
        name: the name of its task; by default that of its class.
        labels: its class names, in id order.
        input_size: (channels, height, width); may be left out if another source states it.
        transform: PIL image -> pixels.

    Raises:
        SourceError: an unknown kind, a scripted module, or weights that are not finite.

    >>> source = module_source(EncoderDecoder(), "image-to-image", name="edges")  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise SourceError(f"unknown kind of task '{kind}'; kinds: {', '.join(KINDS)}")
    model = inner_module(model)
    check_finite(model, f"the {type(model).__name__} in memory")
    return Source(
        name=name or type(model).__name__.lower(),
        model=model,
        backbone={"library": MEMORY, "architecture": type(model).__name__},
        labels=list(labels),
        preprocessing={} if input_size is None else {"input_size": input_size},
        transform=transform,
        origin=dict(NOWHERE),
        settings={},
        kind=kind,
    )


def inner_module(model: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel`.

    Raises:
        SourceError: it is scripted, so that its code and its layers are no longer those of its class.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise SourceError(
                f"{model.original_name} is a scripted module (torch.jit.script, torch.jit.trace); "
                "pass the module that it was made of"
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def check_own_code(model: nn.Module) -> None:
    """Warn of hooks and replaced methods on a module, which a merge leaves out; refuse parametrised weights.

    Raises:
        SourceError: a weight is computed from others at each use (`torch.nn.utils.parametrize`).
    """
    kind = type(model).__name__
    for path, module in model.named_modules():
        where = f"module {path} of the {kind} in memory" if path else f"the {kind} in memory"
        if parametrize.is_parametrized(module):
            raise SourceError(f"{where} has parametrised weights; call parametrize.remove_parametrizations first")
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            _log.warning("%s has hooks or a replaced forward, which the merge leaves out", where)


def not_rebuildable(model: nn.Module) -> SourceError:
    """The error for a module that no library made."""
    return SourceError(
        f"a {type(model).__name__} in memory cannot be rebuilt later: it was not made by timm.create_model or a class "
        "of transformers or segmentation-models-pytorch. Save it as a Hub-format folder and pass that, or describe it "
        "with hf_zipit.module_source"
    )

"""Modules in memory that no library can rebuild: as sources where the user describes them, else refused."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.sources.source import KINDS, NOWHERE, Source


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
        kind: its task: `image-classification`, `image-segmentation`, `depth-estimation`, `image-to-image` or
            `image-feature-extraction`.
        name: the name of its task; by default that of its class.
        labels: its class names, in id order.
        input_size: (channels, height, width); may be left out if another source states it.
        transform: PIL image -> pixels.

    Raises:
        SourceError: an unknown kind.

    >>> source = module_source(EncoderDecoder(), "image-to-image", name="edges")  # doctest: +SKIP
    """
    if kind not in KINDS:
        raise SourceError(f"unknown kind of task '{kind}'; kinds: {', '.join(KINDS)}")
    return Source(
        name=name or type(model).__name__.lower(),
        model=model,
        backbone={"library": "memory", "architecture": type(model).__name__},
        labels=list(labels),
        preprocessing={} if input_size is None else {"input_size": input_size},
        transform=transform,
        origin=dict(NOWHERE),
        settings={},
        kind=kind,
    )


def not_rebuildable(model: nn.Module) -> SourceError:
    """The error for a module that no library made."""
    return SourceError(
        f"a {type(model).__name__} in memory cannot be rebuilt later: it was not made by timm.create_model or a class "
        "of transformers or segmentation-models-pytorch. Save it as a Hub-format folder and pass that, or describe it "
        "with hf_zipit.module_source"
    )

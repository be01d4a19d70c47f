"""Models whose weights have several floating-point types, in one type that holds the values of all."""

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")


def in_one_dtype(sources: Sequence[Source]) -> list[Source]:
    """The models with weights of one type: copies in the smallest type that holds all, where they differ.

    bfloat16, float16 and float32 together give float32. Which type the merge has is logged.
    """
    found = [
        {value.dtype for value in source.model.state_dict().values() if value.is_floating_point()} for source in sources
    ]
    every = set().union(*found)
    if len(every) < 2:
        return list(sources)
    one = functools.reduce(torch.promote_types, every)
    names = ", ".join(f"{s.name} in {'/'.join(sorted(map(_name, own)))}" for s, own in zip(sources, found, strict=True))
    _log.warning(
        "the weights have several types (%s): they are merged in %s; save all models in one type to avoid it",
        names,
        _name(one),
    )
    return [source if own == {one} else _cast(source, one) for source, own in zip(sources, found, strict=True)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cast(source: Source, dtype: torch.dtype) -> Source:
    """A copy of a model, and of the layers behind its trunk, in another type."""
    backbone = source.backbone
    config = backbone.get("config", {})
    if "dtype" in config:
        backbone = {**backbone, "config": {**config, "dtype": _name(dtype)}}
    branches = tuple(
        replace(b, state={k: v.to(dtype) if v.is_floating_point() else v for k, v in b.state.items()})
        for b in source.branches
    )
    model = copy.deepcopy(source.model).to(dtype)
    network = None if source.network is None else copy.deepcopy(source.network).to(dtype)
    return replace(source, model=model, backbone=backbone, branches=branches, network=network)

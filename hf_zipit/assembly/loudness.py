"""Residual streams on one scale: where only layer norms read a stream, its scale is free, and a louder parent would
count for more in an average.
"""

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_zipit.data.batches import Passes
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.permute import randomise

IMAGES = 8  # of each data set, to measure streams on
CLOSE = 1.1  # streams whose scales differ by less than this factor stay as they are
TOLERANCE = 1e-3  # on float32 outputs of ordinary scale: layer norms add a constant to the variance
_log = logging.getLogger("hf_zipit")


def equally_loud(sources: Sequence[Source], binding: Binding, passes: Passes) -> Sequence[Source]:
    """The same models, with streams of equal root mean square. Each computes what it did; none is changed in place.

    Models stay as they are if their streams are about equally loud, or if anything else than a layer norm reads them.
    So do merges, whose heads have weights of their own.

    Args:
        sources: models of one architecture.
        binding: their spec.
        passes: over the images; the first of each data set are read.
    """
    norms = stream_norms(sources[0].model, binding)
    if not norms or not passes.images or any(source.trunk is not None or source.branches for source in sources):
        return sources
    loud = torch.stack([_loudness(working_copy(source.model, passes.device), norms, passes) for source in sources])
    factors = loud.log().mean(0).exp() / loud  # (models, spaces)
    if not factors.isfinite().all() or factors.max() / factors.min() < CLOSE:
        return sources
    first = [paths[0] for paths in norms.values()]
    writing = next((some for some in ([], first[:1], first) if _is_free(sources[0], binding.of(0), norms, some)), None)
    if writing is None:
        return sources
    found = [
        replace(
            source, model=scaled(source.model, binding.of(k), dict(zip(norms, mine.tolist(), strict=True)), writing)
        )
        for k, (source, mine) in enumerate(zip(sources, factors, strict=True))
    ]
    if not all(_same(a.model, b.model, passes) for a, b in zip(sources, found, strict=True)):
        return sources  # a stream as quiet as what its norms add to the variance
    _log.info("streams differ in scale by a factor of up to %.2f: set equal", float(factors.max() / factors.min()))
    return found


def stream_norms(model: nn.Module, binding: Binding) -> dict[str, list[str]]:
    """Stream -> the layer norms over it. A stream is a space that layers read and a layer norm carries."""
    found: dict[str, list[str]] = {}
    for row in binding.table:
        path = row.parameter.rpartition(".")[0]
        whole = row.role == "carry" and row.before == row.after == 1 and row.parameter.endswith(".weight")
        if whole and isinstance(model.get_submodule(path), nn.LayerNorm):
            found.setdefault(row.space, []).append(path)
    read = {row.space for row in binding.table if row.role == "read"}
    return {space: paths for space, paths in found.items() if space in read and binding.spaces[space].one_to_one}


@torch.no_grad()
def _loudness(model: nn.Module, norms: Mapping[str, Sequence[str]], passes: Passes) -> Tensor:
    """The root mean square of what the norms over each stream read, without its mean over units, `(spaces,)`."""
    sums: dict[str, list[Tensor]] = {space: [] for space in norms}

    def adding(space: str) -> Callable[..., None]:
        return lambda _, args: sums[space].append(args[0].double().var(-1, correction=0).mean())

    with ExitStack() as stack:
        for space, paths in norms.items():
            for path in paths:
                stack.callback(model.get_submodule(path).register_forward_pre_hook(adding(space)).remove)
        for images in passes.images:
            pixels = torch.stack([images[i] for i in range(min(len(images), IMAGES))])
            model(pixels.to(passes.device, next(model.parameters()).dtype))
    return torch.stack([torch.stack(found).mean().sqrt() for found in sums.values()]).cpu()


def scaled(
    model: nn.Module, binding: Binding, factors: Mapping[str, float], writing: Collection[str] = ()
) -> nn.Module:
    """A copy whose streams are multiplied by a factor: all that writes or adds to them, but not the norms over them.

    Args:
        model: the model; it is not changed.
        binding: its spec.
        factors: by stream.
        writing: norms whose output is the stream itself, as after the embedding of some models.
    """
    out = copy.deepcopy(model)
    state = out.state_dict()
    for row in binding.table:
        path = row.parameter.rpartition(".")[0]
        carries = row.role == "carry" and path not in writing and state[row.parameter].ndim == 1  # a norm, or a scale
        if row.space in factors and row.role != "read" and not carries:
            state[row.parameter].narrow(row.axis, row.offset, row.length).mul_(factors[row.space])
    return out


@torch.no_grad()
def _same(model: nn.Module, other: nn.Module, passes: Passes) -> bool:
    """Whether two models have the same logits on an image."""
    pixels = passes.images[0][0][None].to(passes.device)
    copies = (working_copy(one, passes.device) for one in (model, other))
    a, b = (logits_of(net(pixels.to(next(net.parameters()).dtype))) for net in copies)
    return _close(a, b)


def _close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= TOLERANCE * max(1.0, b.abs().max().item())


@torch.no_grad()
def _is_free(source: Source, binding: Binding, spaces: Iterable[str], writing: Collection[str]) -> bool:
    """Whether the scale of the streams makes no difference, by trying on random weights and an image of noise."""
    net = randomise(copy.deepcopy(source.model).float().eval(), seed=0)
    pixels = torch.randn(1, *source.input_size, generator=torch.Generator().manual_seed(0))
    wanted = logits_of(net(pixels))
    found = logits_of(scaled(net, binding, dict.fromkeys(spaces, 3.0), writing)(pixels))
    return _close(found, wanted)

"""Checks of a spec against a model: coverage, function preservation, probes and steps.

All of them permute the units of every space at random through the same `transform` that merges models, on float64
copies with random parameters and norm statistics (fresh models hide mistakes behind zero-initialised branches).
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states

TOLERANCE = 1e-9


def permuted(model: nn.Module, binding: Binding, labels: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model whose units are moved: unit i of a space goes to place `labels[space][i]`."""
    matches = {name: Match(x, (len(x),), len(x)) for name, x in labels.items()}
    for name, space in binding.spaces.items():
        matches.setdefault(name, Match(torch.arange(space.size), (space.size,), space.size))
    state = model.state_dict()
    out = copy.deepcopy(model)
    out.load_state_dict(merge_states([state], binding, matches, state))
    return out


def random_labels(binding: Binding, seed: int) -> dict[str, Tensor]:
    """A random permutation of every space; grouped spaces move whole groups and units inside them."""
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Tensor] = {}
    out = {}
    for name, space in binding.spaces.items():
        if space.group_axis is None:
            out[name] = torch.randperm(space.size, generator=generator)
            continue
        if space.group_axis not in orders:
            orders[space.group_axis] = torch.randperm(space.groups, generator=generator)
        inner = space.size // space.groups
        units = torch.stack([torch.randperm(inner, generator=generator) for _ in range(space.groups)])
        out[name] = (orders[space.group_axis][:, None] * inner + units).flatten()
    return out


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Random parameters and norm statistics of ordinary scale, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, dtype=torch.float64, generator=generator)
        if name.endswith("running_var"):
            noise = 0.5 + noise.abs()
        elif value.ndim <= 1:
            noise = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            noise = noise / math.sqrt(value[0].numel())
        value.copy_(noise)
    return model

"""Random permutations of a model's units, through the same transform that merges models.

A correct spec preserves the function of the model under them. Parameters and norm statistics are randomised first,
because freshly initialised models hide mistakes behind zero-initialised branches.
"""

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states

TOLERANCE = 1e-9  # on float64 outputs of ordinary scale; rounding stays far below it


def permuted(model: nn.Module, binding: Binding, labels: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with permuted units.

    Args:
        model: The model; it is not changed.
        binding: The spec bound to the model.
        labels: Space -> permutation, `(size,)`: unit i becomes unit `labels[space][i]`. Other spaces stay as they are.
    """
    matches = {name: Match(x, (len(x),), len(x)) for name, x in labels.items()}
    for name, space in binding.spaces.items():
        matches.setdefault(name, Match(torch.arange(space.size), (space.size,), space.size))
    state = model.state_dict()
    out = copy.deepcopy(model)
    out.load_state_dict(merge_states([state], binding, matches, state))
    return out


def random_labels(binding: Binding, seed: int) -> dict[str, Tensor]:
    """A random permutation of every space: of all units, or of groups and of the units inside each group."""
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
    """Fill parameters and norm statistics with random values of ordinary scale, in place, and return the model."""
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

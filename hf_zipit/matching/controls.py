"""Controls: matches that no method should lose to. Tables show them beside the methods."""

import torch

from hf_zipit.transform.match import Match


def parent_match(size: int, groups: int, models: int, parent: int) -> Match:
    """The units of one model alone; those of the others are dropped.

    With this match the trunk is that parent's, and a refit of the heads shows what its features already say about
    the other tasks.

    >>> parent_match(2, 1, 2, parent=0).labels
    tensor([ 0,  1, -1, -1])
    """
    labels = torch.full((models, size), -1)
    labels[parent] = torch.arange(size)
    return Match(labels.reshape(-1), (size,) * models, size)


def random_match(size: int, groups: int, models: int) -> Match:
    """A one-to-one match drawn at random, always the same one; groups move as wholes, alike in every space.

    With this match a refit shows what least squares alone make of features that have nothing to do with each other.

    >>> sorted(random_match(4, 1, 2).of(1).tolist())
    [0, 1, 2, 3]
    """
    labels = [torch.arange(size)]
    for model in range(1, models):
        order = torch.randperm(groups, generator=torch.Generator().manual_seed(model))
        draw = torch.Generator().manual_seed(1000 * size + model)
        inner = torch.stack([torch.randperm(size // groups, generator=draw) for _ in range(groups)])
        labels.append((order[:, None] * (size // groups) + inner).reshape(-1))
    return Match(torch.cat(labels), (size,) * models, size)

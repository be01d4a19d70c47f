"""Controls: matches without any matching, as baselines in every table."""

from collections.abc import Sequence

import torch

from hf_zipit.transform.match import Match


def parent_match(sizes: Sequence[int], groups: int, parent: int) -> Match:
    """Keep the units of one model and drop those of all others, in O(N n).

    The trunk is then that parent's own. A refit of the heads shows how far its features alone solve the other tasks.

    Args:
        sizes: Units of each model in the space.
        groups: Ignored; every control has the same signature.
        parent: Index of the model to keep; -1 for the last one.

    Returns:
        A match whose labels are -1 for the dropped units.

    >>> parent_match([2, 2], 1, parent=0).labels
    tensor([ 0,  1, -1, -1])
    """
    labels = [torch.full((size,), -1) for size in sizes]
    labels[parent] = torch.arange(sizes[parent])
    return Match(torch.cat(labels), tuple(sizes), sizes[parent])


def random_match(sizes: Sequence[int], groups: int) -> Match:
    """Align the models one-to-one at random, in O(N n).

    A refit of this merge shows what least squares alone achieves with unrelated features. The draw depends on the
    arguments only. Groups are permuted as wholes, in the same order in all spaces with this number of groups.

    Args:
        sizes: Units of each model in the space. The first model keeps its order. Units of narrower models take
            different places among those of the widest.
        groups: Groups of equal size that are permuted as wholes; 1 for none.

    >>> sorted(random_match([4, 4], 1).of(1).tolist())
    [0, 1, 2, 3]
    """
    width = max(sizes)
    units = width // groups
    labels = [torch.arange(sizes[0])]
    for model in range(1, len(sizes)):
        order = torch.randperm(groups, generator=torch.Generator().manual_seed(model))
        generator = torch.Generator().manual_seed(1000 * width + model)
        inner = torch.stack([torch.randperm(units, generator=generator) for _ in range(groups)])
        labels.append((order[:, None] * units + inner).reshape(-1)[: sizes[model]])
    return Match(torch.cat(labels), tuple(sizes), width)

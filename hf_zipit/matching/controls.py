"""Controls: matches without any matching, as baselines in every table."""

import torch

from hf_zipit.transform.match import Match


def parent_match(size: int, groups: int, models: int, parent: int) -> Match:
    """Keep the units of one model and drop those of all others, in O(N n).

    The trunk is then that parent's own. A refit of the heads shows how far its features alone solve the other tasks.

    Args:
        size: Units of one model in the space, n.
        groups: Ignored; every control has the same signature.
        models: Number of models, N.
        parent: Index of the model to keep; -1 for the last one.

    Returns:
        A match whose labels are -1 for the dropped units.

    >>> parent_match(2, 1, 2, parent=0).labels
    tensor([ 0,  1, -1, -1])
    """
    labels = torch.full((models, size), -1)
    labels[parent] = torch.arange(size)
    return Match(labels.reshape(-1), (size,) * models, size)


def random_match(size: int, groups: int, models: int) -> Match:
    """Align the models one-to-one at random, in O(N n).

    A refit of this merge shows what least squares alone achieves with unrelated features. The draw depends on the
    arguments only. Groups are permuted as wholes, in the same order in all spaces with this number of groups.

    Args:
        size: Units of one model in the space, n.
        groups: Groups of equal size that are permuted as wholes; 1 for none.
        models: Number of models, N. The first keeps its order.

    >>> sorted(random_match(4, 1, 2).of(1).tolist())
    [0, 1, 2, 3]
    """
    units = size // groups
    labels = [torch.arange(size)]
    for model in range(1, models):
        order = torch.randperm(groups, generator=torch.Generator().manual_seed(model))
        generator = torch.Generator().manual_seed(1000 * size + model)
        inner = torch.stack([torch.randperm(units, generator=generator) for _ in range(groups)])
        labels.append((order[:, None] * units + inner).reshape(-1))
    return Match(torch.cat(labels), (size,) * models, size)

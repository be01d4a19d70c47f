"""Reference implementations that are slow and obvious, and random inputs for them."""

import numpy as np
import torch

from hf_zipit.specs.parser import list_specs
from hf_zipit.specs.spaces import Binding, FeatureSpace, Row
from hf_zipit.transform.match import Match


def similarity(models: int, width: int, seed: int, dead: bool = False) -> torch.Tensor:
    """Correlations of random ReLU activations, `(models * width, models * width)`; `dead`: a fifth never fire."""
    g = torch.Generator().manual_seed(seed)
    n, rank = models * width, max(3, width // 4)
    x = torch.randn(n, rank, generator=g) @ torch.randn(rank, 200, generator=g)
    x = (x + 0.5 * torch.randn(n, 200, generator=g)).relu()
    if dead:
        x[torch.randperm(n, generator=g)[: n // 5]] = 0
    x = x - x.mean(1, keepdim=True)
    covariance = x @ x.T
    scale = covariance.diagonal().sqrt()
    return covariance / torch.outer(scale, scale).clamp(min=1e-7)


def published(s: torch.Tensor, models: int, alpha: float, beta: float, values: list[float] | None = None) -> list[int]:
    """ZipIt!'s published greedy matching, step by step on a shrinking matrix, in O(n^3).

    Args:
        s: similarity of all units, `(n, n)`.
        models: number of models; their units follow each other in `s`.
        alpha: penalty on merging a cluster again.
        beta: share of the merges that may happen within a model.
        values: receives the similarity at each merge.

    Returns:
        The merged unit of every unit; -1 for units that the procedure drops.
    """
    s = s.clone().float().numpy()
    n = len(s)
    width = n // models
    np.fill_diagonal(s, -np.inf)
    clusters = [[i] for i in range(n)]
    origin = [i // width for i in range(n)]
    budget = [int(((n - width) // models) * beta + 1e-4)] * models
    while len(clusters) > width:
        flat = int(s.argmax())
        i, j = sorted((flat // s.shape[1], flat % s.shape[1]))
        if i == j:  # every pair is forbidden: the first cluster is dropped
            del clusters[0], origin[0]
            s = s[1:, 1:]
            continue
        if values is not None:
            values.append(s[i, j])
        clusters[i] += clusters[j]
        s[:, i] = np.minimum(s[:, i], s[:, j])
        ranges = [slice(o * width, (o + 1) * width) for o in (origin[i], origin[j])]
        if alpha > 0:
            s[:, i] *= np.float32(alpha)
        else:
            for r in ranges:
                s[r, i] = -np.inf
        s = np.delete(s, j, 1)
        s[i] = np.minimum(s[i], s[j])
        if alpha > 0:
            s[i] *= np.float32(alpha)
        else:
            for r in ranges:
                s[i, r] = -np.inf
        s = np.delete(s, j, 0)
        same = origin[i] == origin[j]
        del clusters[j], origin[j]
        if same:
            budget[origin[i]] -= 1
            if budget[origin[i]] <= 0:
                mine = np.array([o == origin[i] for o in origin])
                s[np.ix_(mine, mine)] = -np.inf
    labels = [-1] * n
    for label, members in enumerate(clusters):
        for unit in members:
            labels[unit] = label
    return labels


def bound(rows: list[Row], **sizes: int) -> Binding:
    """A binding made of rows and of spaces with these sizes, without a model."""
    spaces = {name: FeatureSpace(name, size, ()) for name, size in sizes.items()}
    return Binding(list_specs()[0], spaces, tuple(rows), {}, {}, {}, (), ())


def random_match(size: int, models: int, width: int, seed: int) -> Match:
    """A random match of `models` models with `size` units each to `width` merged units, none of them empty."""
    labels = torch.randint(0, width, (size * models,), generator=torch.Generator().manual_seed(seed))
    labels[:width] = torch.arange(width)  # every merged unit has a member
    return Match(labels, (size,) * models, width)

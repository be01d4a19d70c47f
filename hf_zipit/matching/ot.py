"""Soft alignment of models: optimal transport of their units with entropy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import check_sizes

UNIFORM, IMPORTANCE = "uniform", "importance"
LEAST = 0.01  # the mass of a unit that nothing reads, as a share of the mean
STEPS = 1000  # largest number of steps at one temperature
ERROR = 1e-6  # largest relative error of a mass before the plan is rounded; at higher temperatures it may be COARSE
COARSE = 1e-2


def ot_match(
    similarity: Tensor,
    sizes: Sequence[int],
    *,
    temperature: float = 0.02,
    masses: str = UNIFORM,
    readers: Tensor | None = None,
) -> DenseMatch:
    """Map the units of every model softly to those of one model, by optimal transport.

    A plan moves the masses of the units of model k to those of the reference at the least cost `2 - 2 similarity`, less
    `temperature` times its entropy. The map to the units of the reference is the mean under the plan, `T_k = diag(1/μ)
    π_k` for masses μ, and so is the map back. The merge is `M = [I, T_2, ...] / N`. The reference is the widest model,
    the first of them if there are several, so the result depends on the order of the models.

    With equal masses and widths, the plan tends to the assignment of `permute` as the temperature falls. Takes up to
    thousands of steps of O(n^2) each.

    Source: Singh and Jaggi (2020), Model Fusion via Optimal Transport, section 4; Cuturi (2013), Sinkhorn distances.

    Args:
        similarity: Correlation, `(n, n)`, units of model 0 first.
        sizes: Units of each model; `sum(sizes) == n`.
        temperature: Weight of the entropy, above 0. Costs lie between 0 and 4.
        masses: `uniform`, or `importance` for the norm of what the next layers read of each unit.
        readers: `(r, n)`: what the next layers read of the units (see `weights.readers`). Without it, masses are
            uniform.

    Returns:
        A dense match as wide as the widest model. `score` is the mean similarity under the plans.

    Raises:
        OptionError: The similarity has another shape.

    >>> s = torch.tensor([[1, 0, 0, 0.9], [0, 1, 0.9, 0], [0, 0.9, 1, 0], [0.9, 0, 0, 1]])
    >>> ot_match(s, [2, 2], temperature=0.01).merge_of(1).round(decimals=3) * 2
    tensor([[0., 1.],
            [1., 0.]], dtype=torch.float64)
    """
    sizes, _ = check_sizes(similarity, sizes, None)
    values = similarity.detach().cpu().double()
    reference = sizes.index(max(sizes))
    near = torch.split(torch.split(values, list(sizes))[reference], list(sizes), 1)
    weights = _masses(sizes, readers if masses == IMPORTANCE else None)
    mine = weights[reference]
    maps, backs, scores = [], [], []
    for model, other in enumerate(weights):
        if model == reference:
            plan = mine.diag()
        else:
            plan = transport(2 - 2 * near[model], mine, other, temperature)
            scores.append(float((plan * near[model]).sum()))
        maps.append(plan / mine[:, None])
        backs.append((plan / other).T)
    merge = torch.cat(maps, 1) / len(sizes)
    return DenseMatch(merge, torch.cat(backs), merge, sizes, sum(scores) / len(scores) if scores else 1.0)


def transport(cost: Tensor, rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """The plan that moves masses at the least cost less `temperature` times its entropy, by Sinkhorn's steps.

    The steps are on logarithms of the masses. They begin at a high temperature, which is halved again and again. What
    is left of the errors of the masses is spread, so that they are exact (Altschuler et al., 2017, algorithm 2).

    Args:
        cost: `(n, m)`.
        rows: Masses, `(n,)`, above 0.
        columns: Masses, `(m,)`, above 0, with the same sum.
        temperature: Weight of the entropy, above 0.

    Returns:
        `(n, m)`, not negative. The sums of its rows and columns are the masses.

    >>> transport(torch.tensor([[0.0, 1], [1, 0]]), torch.ones(2) / 2, torch.ones(2) / 2, 0.05)
    tensor([[5.0000e-01, 1.0306e-09],
            [1.0306e-09, 5.0000e-01]])
    """
    f, g = torch.zeros_like(rows), torch.zeros_like(columns)
    level = max(temperature, float(cost.max() - cost.min()))
    while True:
        wanted = ERROR if level == temperature else COARSE
        for _ in range(STEPS):
            new = level * (rows.log() - ((g - cost) / level).logsumexp(1))
            error = float((new - f).abs().max()) / level
            f = new
            g = level * (columns.log() - ((f[:, None] - cost) / level).logsumexp(0))
            if error < wanted:
                break
        if level == temperature:
            return _rounded(((f[:, None] + g - cost) / level).exp(), rows, columns)
        level = max(temperature, level / 2)


def _rounded(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A plan with exactly these masses, near one that has them almost."""
    plan = plan * (rows / plan.sum(1)).clamp(max=1)[:, None]
    plan = plan * (columns / plan.sum(0)).clamp(max=1)
    left, below = (rows - plan.sum(1)).clamp(min=0), (columns - plan.sum(0)).clamp(min=0)
    total = left.sum()
    return plan + torch.outer(left, below) / total if total > 0 else plan


def _masses(sizes: Sequence[int], readers: Tensor | None) -> list[Tensor]:
    """The mass of every unit of every model; each model's sum to 1."""
    if readers is None:
        return [torch.full((size,), 1 / size, dtype=torch.float64) for size in sizes]
    norms = torch.split(readers.detach().cpu().double().norm(dim=0), list(sizes))
    floored = [one + LEAST * one.mean() + torch.finfo(one.dtype).tiny for one in norms]
    return [one / one.sum() for one in floored]

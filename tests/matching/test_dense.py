"""Dense matches of plain tensors: planted maps and permutations, masses, and the limits of the temperature."""

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from hf_zipit.errors import OptionError
from hf_zipit.matching.cca import cca_match
from hf_zipit.matching.ot import ot_match, transport
from hf_zipit.matching.permute import permute_match


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def features(units=8, samples=400, seed=0):
    """Correlated features `(samples, units)`."""
    mixed = torch.randn(samples, units, dtype=torch.float64, generator=draw(seed))
    return mixed @ torch.randn(units, units, dtype=torch.float64, generator=draw(seed + 1)) + 0.5


def moments(*models):
    return torch.cov(torch.cat(models, 1).T, correction=0)


def uniform(count):
    return torch.full((count,), 1 / count, dtype=torch.float64)


def test_cca_recovers_planted_invertible_maps():
    x = features()
    maps = [torch.randn(8, 8, dtype=torch.float64, generator=draw(seed)) for seed in (5, 6)]
    match = cca_match(moments(x, *(x @ one for one in maps)), [8, 8, 8], ridge=1e-12)
    for model, planted in enumerate(maps, 1):
        torch.testing.assert_close(3 * match.merge_of(model).T, planted.inverse(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(match.unmerge_of(model).T, planted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(3 * match.merge_of(0), torch.eye(8).double())
    assert match.score == pytest.approx(1)


def test_cca_recovers_a_planted_permutation_with_any_ridge():
    x = features()
    order = torch.randperm(8, generator=draw())
    for ridge in (1e-9, 0.1, 10):
        match = cca_match(moments(x, x[:, order]), [8, 8], ridge=ridge)
        torch.testing.assert_close(2 * match.merge_of(1), torch.eye(8)[order].double().T, rtol=0, atol=1e-6)


def test_a_merge_of_cca_varies_as_the_first_model_does():
    """Whatever the second model's features are, its mapped units have the covariance of the first's."""
    x, y = features(), features(seed=7)
    covariance = moments(x, y)
    t = 2 * cca_match(covariance, [8, 8], ridge=1e-12).merge_of(1)
    torch.testing.assert_close(t @ covariance[8:, 8:] @ t.T, covariance[:8, :8], rtol=1e-4, atol=1e-4)


def test_cca_correlates_the_whitened_features_most():
    """Beside a search over random rotations of the whitened features of the second model."""
    x, y = features(3), features(3, seed=7)
    y = y + x @ torch.randn(3, 3, dtype=torch.float64, generator=draw(3))
    covariance = moments(x, y)
    t = 2 * cca_match(covariance, [3, 3], ridge=1e-12).merge_of(1)
    white = torch.linalg.inv(torch.linalg.cholesky(covariance[:3, :3]))

    def agreement(t):
        return float((white @ covariance[:3, 3:] @ t.T @ white.T).trace())

    turns = [torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=draw(seed)))[0] for seed in range(200)]
    color = torch.linalg.inv(white)
    assert agreement(t) >= max(agreement(color @ turn @ white @ t) for turn in turns) - 1e-9


def test_cca_with_constant_units_is_finite():
    x = features()
    x[:, :3] = 2
    match = cca_match(moments(x, x.flip(1)), [8, 8])
    assert match.merge.isfinite().all()
    assert match.unmerge.isfinite().all()


@pytest.mark.parametrize(("n", "m"), [(6, 6), (6, 4), (3, 7)])
@pytest.mark.parametrize("temperature", [1e-3, 0.05, 3.0])
def test_the_sums_of_a_plan_are_the_masses(n, m, temperature):
    cost = torch.rand(n, m, generator=draw(), dtype=torch.float64)
    rows, columns = (torch.rand(k, generator=draw(k), dtype=torch.float64) + 0.1 for k in (n, m))
    rows, columns = rows / rows.sum(), columns / columns.sum()
    plan = transport(cost, rows, columns, temperature)
    torch.testing.assert_close(plan.sum(1), rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(plan.sum(0), columns, rtol=0, atol=1e-12)
    assert plan.min() >= 0


def test_a_plan_beside_plain_sinkhorn():
    """The textbook: scale rows and columns of `exp(-cost / temperature)` in turn, ten thousand times."""
    cost = torch.rand(5, 4, generator=draw(), dtype=torch.float64)
    rows, columns = uniform(5), uniform(4)
    kernel = (-cost / 0.2).exp()
    for _ in range(10_000):
        kernel = kernel * (rows / kernel.sum(1))[:, None]
        kernel = kernel * (columns / kernel.sum(0))
    torch.testing.assert_close(transport(cost, rows, columns, 0.2), kernel, rtol=1e-5, atol=0)


def test_a_plan_tends_to_the_best_assignment():
    """Beside all permutations of a small problem, and the assignment of a larger one."""
    cost = torch.rand(5, 5, generator=draw(), dtype=torch.float64)
    best = min(itertools.permutations(range(5)), key=lambda p: float(cost[range(5), p].sum()))
    plan = transport(cost, uniform(5), uniform(5), 1e-4)
    torch.testing.assert_close(5 * plan, torch.eye(5).double()[list(best)], rtol=0, atol=1e-3)
    cost = torch.rand(60, 60, generator=draw(1), dtype=torch.float64)
    least = cost[linear_sum_assignment(cost.numpy())].mean()
    costs = [
        float((transport(cost, uniform(60), uniform(60), t) * cost).sum()) for t in (1.0, 0.1, 0.01, 0.001, 0.0002)
    ]
    assert costs == sorted(costs, reverse=True)
    assert least - 1e-9 <= costs[-1] < least + 1e-4


def test_ot_at_a_low_temperature_is_permute_and_at_a_high_one_the_mean():
    x = features()
    near = x[:, torch.randperm(8, generator=draw())] + 2 * features(seed=3)
    similarity = torch.corrcoef(torch.cat([x, near], 1).T)
    hard = permute_match(similarity, [8, 8])
    torch.testing.assert_close(
        ot_match(similarity, [8, 8], temperature=1e-4).merge, hard.merge.double(), atol=1e-6, rtol=0
    )
    soft = ot_match(similarity, [8, 8], temperature=100)
    torch.testing.assert_close(2 * soft.merge_of(1), torch.full((8, 8), 1 / 8, dtype=torch.float64), atol=1e-2, rtol=0)


@pytest.mark.parametrize("masses", ["uniform", "importance"])
def test_ot_maps_models_of_any_widths_to_the_widest_by_means(masses):
    sizes = [3, 5, 4, 5]
    similarity = torch.corrcoef(features(17, 100).T)
    readers = torch.randn(9, 17, generator=draw())
    match = ot_match(similarity, sizes, masses=masses, readers=readers)
    assert match.width == 5
    torch.testing.assert_close(4 * match.merge_of(1), torch.eye(5).double())
    for model, size in enumerate(sizes):
        t, back = 4 * match.merge_of(model), match.unmerge_of(model)
        assert t.shape == (5, size)
        torch.testing.assert_close(t.sum(1), torch.ones(5).double())
        torch.testing.assert_close(back.sum(1), torch.ones(size).double())


def test_masses_of_importance_are_the_norms_of_what_is_read():
    """The map back is the transposed map, each entry times the ratio of the masses of its units."""
    similarity = torch.corrcoef(features().T)
    readers = torch.randn(9, 8, generator=draw())
    match = ot_match(similarity, [4, 4], temperature=1.0, masses="importance", readers=readers)
    t, back = 2 * match.merge_of(1), match.unmerge_of(1)
    norms = readers.double().norm(dim=0).split(4)
    mine, other = ((x + 0.01 * x.mean()) / (x + 0.01 * x.mean()).sum() for x in norms)
    torch.testing.assert_close(back, (t * mine[:, None] / other).T)


def test_what_they_cannot_match_is_refused():
    with pytest.raises(OptionError, match=r"cca needs models of one width, not \[3, 4\]"):
        cca_match(torch.eye(7), [3, 4])
    for match in (cca_match, ot_match):
        with pytest.raises(OptionError, match=r"has shape \(6, 6\)"):
            match(torch.eye(6), [4, 4])


@pytest.mark.parametrize("match", [cca_match, ot_match])
def test_one_model_stays_as_it_is(match):
    found = match(torch.eye(4), [4])
    torch.testing.assert_close(found.merge, torch.eye(4).double())
    torch.testing.assert_close(found.unmerge, torch.eye(4).double())

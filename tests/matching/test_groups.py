"""Groups, k-means, the optimum and its bound against obvious oracles."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from hf_zipit.errors import OptionError
from hf_zipit.matching.greedy import Budget
from hf_zipit.matching.groups import match_groups
from hf_zipit.matching.kmeans import kmeans_match
from hf_zipit.matching.optimal import optimal_match
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.quality import agreement, bound, optimality_gap
from hf_zipit.matching.zip import zip_match
from hf_zipit.transform.match import Match
from tests.helpers.oracles import similarity


def symmetric(models, width, seed):
    s = similarity(models, width, seed).double()
    return (s + s.T) / 2


def published_groups(s, models, groups, alpha, beta):
    """Group zip as published: tuples of groups, then the greedy inside each with budgets that all tuples share."""
    s = s.float().numpy()
    n = len(s) // models
    inner = n // groups
    block = lambda k, g: range(k * n + g * inner, k * n + (g + 1) * inner)  # noqa: E731
    orders = [list(range(groups))]
    for k in range(1, models):
        table = np.zeros((groups, groups))
        for a, b in itertools.product(range(groups), repeat=2):
            part = s[np.ix_(block(0, a), block(k, b))]
            table[a, b] = part[linear_sum_assignment(part, maximize=True)].mean()
        orders.append(linear_sum_assignment(table, maximize=True)[1].tolist())
    removals = models * n - n
    budget = [int((removals // models) * beta + 1e-4)] * models
    closed = [False] * models
    labels, next_label = [-1] * (models * n), 0
    for j in range(groups):
        units = [u for k in range(models) for u in block(k, orders[k][j])]
        clusters = {u: [u] for u in units}  # by smallest place
        values = {(a, b): s[a, b] for a, b in itertools.combinations(units, 2)}
        origin = {u: u // n for u in units}
        share = [removals // (models * groups)] * models

        def close(model, values=values, origin=origin):
            values.update({p: -np.inf for p in values if origin[p[0]] == origin[p[1]] == model})

        for model in range(models):
            if closed[model]:
                close(model)
        while len(clusters) > inner:
            a, b = max(values, key=lambda p: (values[p], -units.index(p[0]), -units.index(p[1])))
            clusters[a] += clusters.pop(b)
            for c in clusters:
                if c != a:
                    here, there = (tuple(sorted((x, c), key=units.index)) for x in (a, b))
                    values[here] = min(values[here], values[there]) * np.float32(alpha)
            for pair in [p for p in values if b in p]:
                del values[pair]
            if origin[a] == origin[b]:
                budget[origin[a]] -= 1
                share[origin[a]] -= 1
                closed[origin[a]] |= budget[origin[a]] <= 0
                if closed[origin[a]] or share[origin[a]] <= 0:
                    close(origin[a])
        for members in clusters.values():
            for u in members:
                labels[u] = next_label
            next_label += 1
    return labels


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.1, 0.8), (0.5, 0.3), (1.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize(("groups", "width"), [(2, 8), (3, 12), (4, 16)])
def test_compat_shares_budgets_among_the_groups_as_published(groups, width, alpha, beta):
    for seed in range(4):
        s = symmetric(2, width, seed)
        budget = Budget.of((width, width), beta, width, groups)

        def method(values, sizes, budget=budget):
            return zip_match(values, sizes, alpha=alpha, beta=beta, compat=True, budget=budget)

        (found,) = match_groups([s], 2, groups, [method], compat=True)
        assert found.labels.tolist() == published_groups(s, 2, groups, alpha, beta), seed


def test_the_budget_of_a_space_runs_out_over_its_groups():
    s = torch.eye(16) + 0.9 * (torch.arange(16)[:, None] // 8 == torch.arange(16) // 8)  # alike within the models
    budget = Budget.of((8, 8), 0.3, 8, groups=2)
    assert budget.left == [1, 1]
    assert budget.share == 2
    match_groups([s], 2, 2, [lambda v, n: zip_match(v, n, alpha=1, beta=0.3, compat=True, budget=budget)], compat=True)
    assert budget.closed == [True, True]


def test_more_than_two_models_are_aligned_jointly():
    """Never worse than any star, and the same for every order of the models."""
    s, width = symmetric(3, 9, 0), 9

    def total(match):
        return agreement(s, match)

    found = permute_match(s, [width] * 3)
    assert found.of(0).tolist() == list(range(width))
    stars = []
    for hub in range(3):
        order = torch.tensor([hub, *(k for k in range(3) if k != hub)])
        units = (order[:, None] * width + torch.arange(width)).flatten()
        star = permute_match(s[units][:, units], [width] * 3, compat=True)
        back = Match(star.labels[units.argsort()], star.sizes, width)
        stars.append(total(back))
        joint = permute_match(s[units][:, units], [width] * 3).labels[units.argsort()]
        assert torch.equal(joint[:, None] == joint, found.labels[:, None] == found.labels)
    assert total(found) >= max(stars) - 1e-12
    for k in range(3):  # no model can be moved with profit
        others = [j for j in range(3) if j != k]
        seats = [match.argsort() for match in found.labels.view(3, width)]
        scores = sum(s[j * width + seats[j]][:, k * width : (k + 1) * width] for j in others).numpy()
        assert scores[linear_sum_assignment(scores, maximize=True)].sum() <= scores[range(width), seats[k]].sum() + 1e-9


def perfect_matchings(units):
    if not units:
        yield []
        return
    first, *rest = units
    for other in rest:
        for more in perfect_matchings([u for u in rest if u != other]):
            yield [(first, other), *more]


@pytest.mark.parametrize("seed", range(4))
def test_optimal_is_the_best_of_all_perfect_matchings(seed):
    s = symmetric(2, 4, seed)
    best = max(sum(s[i, j].item() for i, j in pairs) for pairs in perfect_matchings(list(range(8))))
    match = optimal_match(s, [4, 4])
    assert match.counts.tolist() == [2] * 4
    assert agreement(s, match) * 8 / 2 == pytest.approx(best)
    assert agreement(s, match) >= agreement(s, permute_match(s, [4, 4])) - 1e-12
    assert agreement(s, match) <= bound(s) + 1e-12


def set_partitions(units):
    if not units:
        yield []
        return
    first, *rest = units
    for parts in set_partitions(rest):
        yield [[first], *parts]
        for i, part in enumerate(parts):
            yield [*parts[:i], [first, *part], *parts[i + 1 :]]


def test_no_clustering_beats_the_bound():
    for seed in range(3):
        s = symmetric(2, 3, seed)
        best = -np.inf
        for parts in set_partitions(list(range(6))):
            labels = torch.tensor([next(i for i, p in enumerate(parts) if u in p) for u in range(6)])
            mates = [[v for v in parts[labels[u]] if v != u] for u in range(6)]
            slow = sum(s[u, m].mean().item() for u, m in enumerate(mates) if m) / 6
            match = Match(labels, (3, 3), len(parts))
            assert agreement(s, match) == pytest.approx(slow)
            best = max(best, slow)
        assert best <= bound(s) + 1e-12
        assert optimality_gap(s, zip_match(s, [3, 3])) < 1


def test_optimal_of_three_models_and_of_odd_widths():
    s = symmetric(3, 5, 1)
    match = optimal_match(s, [5] * 3)
    assert match.width == 5
    assert match.counts.sum().item() == 15
    assert match.counts.min().item() > 0
    with pytest.raises(OptionError, match="one width"):
        optimal_match(symmetric(2, 4, 0)[:7, :7], [4, 3])


@pytest.mark.parametrize(("sizes", "keep"), [([24, 24], None), ([24, 24], 12), ([48], 16)])
@pytest.mark.parametrize("seed", range(3))
def test_kmeans_is_a_fixpoint_of_lloyds_steps_and_as_good_as_sklearn(seed, sizes, keep):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(48, 5, generator=g, dtype=torch.float64) @ torch.randn(5, 60, generator=g, dtype=torch.float64)
    x = x + 0.5 * torch.randn(48, 60, generator=g, dtype=torch.float64)
    x = torch.nn.functional.normalize(x - x.mean(1, keepdim=True))
    match = kmeans_match(x @ x.T, sizes, keep=keep)
    assert match.width == (keep or 24)
    assert match.counts.min() > 0
    means = torch.stack([x[match.labels == c].mean(0) for c in range(match.width)])
    distance = torch.cdist(x, means).square()
    own = distance[torch.arange(48), match.labels]
    assert (own <= distance.min(1).values + 1e-8).all()
    fitted = KMeans(match.width, n_init=1, random_state=0).fit(x.numpy())
    assert own.sum() <= 1.1 * fitted.inertia_

"""Matching against slow, obvious oracles, and by its properties."""

import itertools

import numpy as np
import pytest
import torch

from hf_zipit.errors import OptionError
from hf_zipit.matching.average import average_match
from hf_zipit.matching.groups import match_groups
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.zip import zip_match
from tests.helpers.oracles import published, similarity


def repaired(s: torch.Tensor, models: int, alpha: float, beta: float, keep: int) -> list[int] | None:
    """The default rules by exhaustive search at every step; `None` where every pair is forbidden."""
    s = s.float().numpy()
    n, width = len(s), len(s) // models
    clusters = [frozenset([i]) for i in range(n)]
    score = {frozenset(p): s[min(*p), max(*p)] for p in itertools.combinations(range(n), 2)}
    score = {frozenset(frozenset([i]) for i in p): v for p, v in score.items()}
    budget = [max(int(beta * (n - keep) / models + 1e-4), width - keep)] * models
    holds = lambda c: {i // width for i in c}  # noqa: E731
    while len(clusters) > keep:
        free = [
            (score[frozenset((a, b))], -min(a), -min(b), a, b)
            for a, b in itertools.combinations(sorted(clusters, key=min), 2)
            if all(budget[m] > 0 for m in holds(a) & holds(b))
        ]
        if not free:
            return None
        *_, a, b = max(free, key=lambda f: f[:3])
        for m in holds(a) & holds(b):
            budget[m] -= 1
        clusters = [c for c in clusters if c not in (a, b)]
        for c in clusters:
            worst = min(score[frozenset((a, c))], score[frozenset((b, c))])
            pays = worst > 0 and len(a | b) >= models
            score[frozenset((a | b, c))] = worst * np.float32(alpha) if pays else worst
        clusters.append(a | b)
    labels = [0] * n
    for label, members in enumerate(sorted(clusters, key=min)):
        for unit in members:
            labels[unit] = label
    return labels


CASES = [(2, 6, 0), (2, 17, 1), (3, 8, 2), (4, 6, 3), (3, 12, 4)]
OPTIONS = list(itertools.product([0, 1e-4, 0.1, 0.5, 1], [0, 0.075, 0.5, 0.8, 1]))


@pytest.mark.parametrize(("models", "width", "seed"), CASES)
@pytest.mark.parametrize("dead", [False, True])
def test_compat_equals_the_published_procedure(models, width, seed, dead):
    s = similarity(models, width, seed, dead)
    for alpha, beta in OPTIONS:
        found = zip_match(s, [width] * models, alpha=alpha, beta=beta, compat=True)
        assert found.labels.tolist() == published(s, models, alpha, beta), (alpha, beta)


def test_compat_drops_units_where_the_published_procedure_does():
    s = similarity(3, 40, 4)
    match = zip_match(s, [40] * 3, alpha=1e-4, beta=0.075, compat=True)
    assert (match.labels < 0).any()
    assert match.labels.tolist() == published(s, 3, 1e-4, 0.075)
    assert match.unmerge[match.labels < 0].abs().sum() == 0


@pytest.mark.parametrize(("models", "width", "seed"), CASES)
@pytest.mark.sample(2)
def test_default_equals_its_oracle(models, width, seed):
    s = similarity(models, width, seed)
    s = (s + s.T) / 2
    compared = 0
    for (alpha, beta), keep in itertools.product(OPTIONS, (width, width + 3, width - 2)):
        found = zip_match(s, [width] * models, alpha=alpha, beta=beta, keep=keep).labels.tolist()
        expected = repaired(s, models, alpha, beta, keep)
        compared += expected is not None
        assert expected is None or found == expected, (alpha, beta, keep)
    assert compared > 20


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("models", [2, 3, 4])
@pytest.mark.sample(6)
def test_default_keeps_every_unit_and_every_budget(models, seed):
    width = 12
    s = similarity(models, width, seed, dead=seed % 2 == 1)
    for (alpha, beta), keep in itertools.product(OPTIONS, (5, width, 20)):
        match = zip_match(s, [width] * models, alpha=alpha, beta=beta, keep=keep)
        members = torch.stack([torch.bincount(x, minlength=keep) for x in match.labels.split(width)])
        assert match.labels.min() == 0
        assert (match.counts > 0).all()
        within = (members - 1).clamp(min=0).sum(1)
        assert within.max() <= max(int(beta * (models * width - keep) / models + 1e-4), width - keep)
        if beta == 0 and keep >= width:
            assert members.max() == 1


def test_default_does_not_depend_on_the_order_of_the_models():
    width = 16
    s = similarity(3, width, 0)
    s = (s + s.T) / 2
    order = torch.tensor([2, 0, 1])
    units = (order[:, None] * width + torch.arange(width)).flatten()
    a = zip_match(s, [width] * 3, alpha=0.3, beta=0.3).labels[units]
    b = zip_match(s[units][:, units], [width] * 3, alpha=0.3, beta=0.3).labels
    assert torch.equal(a[:, None] == a, b[:, None] == b)


def test_models_of_different_widths_can_be_zipped():
    s = similarity(2, 10, 0)[:16, :16]
    match = zip_match(s, [10, 6], alpha=0.1, beta=1, keep=9)
    assert match.width == 9
    assert match.of(1).shape == (6,)


def test_a_planted_permutation_is_recovered():
    s = similarity(2, 20, 0)[:20, :20]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    both = torch.cat([torch.arange(20), order])
    s = s[both][:, both]
    for match in (permute_match(s, [20, 20]), zip_match(s, [20, 20], alpha=0.1, beta=0.8)):
        assert torch.equal(match.of(1), match.of(0)[order])


def test_permute_maximises_the_summed_similarity():
    s = similarity(2, 5, 3)
    best = max(sum(s[i, 5 + p[i]].item() for i in range(5)) for p in itertools.permutations(range(5)))
    labels = permute_match(s, [5, 5]).of(1)
    assert sum(s[int(labels[j]), 5 + j].item() for j in range(5)) == pytest.approx(best)


def test_merge_and_unmerge_are_mean_and_copy():
    match = zip_match(similarity(2, 6, 0), [6, 6], alpha=0.1, beta=1)
    assert match.merge.shape == (6, 12)
    assert match.unmerge.shape == (12, 6)
    torch.testing.assert_close(match.merge @ match.unmerge, torch.eye(6))
    torch.testing.assert_close(match.merge.sum(1), torch.ones(6))
    assert sum(match.composition().values()) == 6
    assert average_match([3, 3]).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_groups_move_as_a_whole():
    """Three groups of four units, shuffled whole and inside: matching finds the order from two spaces at once."""
    g = torch.Generator().manual_seed(0)
    order = torch.tensor([2, 0, 1])
    matrices, expected = [], []
    for _ in range(2):
        x = torch.randn(12, 300, generator=g)
        inner = torch.stack([torch.randperm(4, generator=g) for _ in range(3)])
        units = (order[:, None] * 4 + inner).flatten()
        matrices.append(torch.corrcoef(torch.cat([x, x[units]])))
        expected.append(units)
    found = match_groups([*matrices, None], 2, 3, [permute_match] * 3)
    assert found.pop().of(1).tolist() == order.tolist()
    for match, units in zip(found, expected, strict=True):
        assert torch.equal(match.of(1), units)
    zipped = match_groups(matrices, 2, 3, [lambda s, n: zip_match(s, n, alpha=0.1, beta=1)] * 2)
    for match in zipped:
        assert torch.equal(match.of(0) // 4, torch.arange(3).repeat_interleave(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5, "beta": 0}, "alpha is 1.5"),
        ({"alpha": 0.1, "beta": -0.1}, "beta is -0.1"),
        ({"alpha": 0.1, "beta": 0, "keep": 99}, "keep is 99"),
        ({"alpha": 0.1, "beta": 0, "keep": 3, "compat": True}, "keep=3"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        zip_match(similarity(2, 4, 0), [4, 4], **options)


def test_wrong_shapes_are_refused():
    with pytest.raises(OptionError, match="similarity has shape"):
        permute_match(torch.eye(5), [3, 3])
    with pytest.raises(OptionError, match="one width"):
        average_match([3, 4])

"""Partial alignment of two models against all partial alignments, beside permutations that are split."""

from itertools import combinations, permutations

import pytest
import torch

import hf_zipit
from hf_zipit.errors import OptionError
from hf_zipit.matching.partial import partial_match
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.widen import split_match
from tests.helpers.models import images, tiny
from tests.helpers.oracles import similarity


def signed(first, second, seed):
    """Similarities of two models' units, of both signs."""
    return torch.randn(first + second, first + second, generator=torch.Generator().manual_seed(seed))


def gain(match, values):
    """The summed similarity of the pairs of a match."""
    first = match.sizes[0]
    pairs = match.of(0)[:, None] == match.of(1)
    return float((values[:first, first:] * pairs).sum())


def best(values, first, count):
    """The largest sum of `count` pairs, among all sets of rows and orders of columns."""
    block = values[:first, first:]
    rows = combinations(range(first), count)
    sums = [
        sum(float(block[i, j]) for i, j in zip(mine, columns, strict=True))
        for mine in rows
        for columns in permutations(range(block.shape[1]), count)
    ]
    return max(sums)


@pytest.mark.parametrize(("first", "second"), [(4, 4), (3, 5), (5, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_best_of_all_partial_alignments(first, second, seed):
    values = signed(first, second, seed)
    for keep in range(max(first, second), first + second + 1):
        found = partial_match(values, [first, second], keep=keep)
        assert found.width == keep == len(found.labels.unique())
        assert found.composition()["within"] == 0
        assert gain(found, values) == pytest.approx(best(values, first, first + second - keep), abs=1e-5)


def test_units_keep_the_order_of_the_first_model_and_then_of_the_second():
    values = signed(6, 6, 0)
    found = partial_match(values, [6, 6], keep=9)
    assert torch.equal(found.of(0), torch.arange(6))
    apart = found.of(1)[found.of(1) >= 6]
    assert torch.equal(apart, torch.arange(6, 9))
    assert torch.equal(partial_match(values, [6, 6], keep=12).labels, torch.arange(12))


def test_splitting_a_permutation_is_never_better_and_sometimes_worse():
    worse = 0
    for seed in range(5):
        values = similarity(2, 12, seed)
        values = (values + values.T) / 2
        for keep in range(13, 24):
            split = gain(split_match(permute_match(values, [12, 12]), values, keep), values)
            exact = gain(partial_match(values, [12, 12], keep=keep), values)
            assert exact >= split - 1e-6
            worse += exact > split + 1e-3
    assert worse > 10


def test_at_the_width_of_one_model_it_is_permute():
    for sizes in ([5, 5], [3, 5], [4, 4, 4]):
        values = similarity(1, sum(sizes), 0)
        assert torch.equal(partial_match(values, sizes).labels, permute_match(values, sizes).labels)


def test_impossible_sizes_are_refused():
    values = similarity(2, 4, 0)
    with pytest.raises(OptionError, match="keep is 3, below the 4 units of a model"):
        partial_match(values, [4, 4], keep=3)
    with pytest.raises(OptionError, match=r"sizes is \[2, 2, 4\]: only two models can be aligned partially"):
        partial_match(values, [2, 2, 4], keep=6)
    models = [tiny("cifar_resnet20", seed) for seed in range(3)]
    for options in ({"width": 1.5}, {"flops_budget": 1.5}):
        with pytest.raises(OptionError, match=r"'partial-ot' chooses which units of two models .* these are 3 models"):
            hf_zipit.merge(models, images(8), method="partial-ot", calibrate="none", **options)
    with pytest.raises(OptionError, match="'partial-ot' supports no width below 1"):
        hf_zipit.merge(models[:2], images(8), method="partial-ot", width=0.5, calibrate="none")

"""Selection of units, beside a slow greedy choice that projects step by step."""

import pytest
import torch

from hf_zipit.calibration.refit.targets import trunk_target
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching import subset
from hf_zipit.matching.groups import match_groups
from hf_zipit.matching.select import select_match
from hf_zipit.matching.weights import readers
from hf_zipit.sources.load import load_source
from hf_zipit.statistics.moments import Moments
from hf_zipit.transform.match import Match
from tests.helpers.models import tiny


def activations(units, samples=200, seed=0):
    """Correlated activations `(samples, units)` of few causes."""
    draw = torch.Generator().manual_seed(seed)
    causes = torch.randn(samples, units // 2, generator=draw, dtype=torch.float64)
    mixed = causes @ torch.randn(units // 2, units, generator=draw, dtype=torch.float64)
    return mixed + 0.3 * torch.randn(samples, units, generator=draw, dtype=torch.float64)


def unexplained(x, chosen, read):
    """Squared error of what is read from the best linear prediction of all units by the chosen ones."""
    error = x - x[:, chosen] @ torch.linalg.lstsq(x[:, chosen], x).solution
    return float((error @ read.T).square().sum())


@pytest.mark.parametrize("seed", range(3))
def test_every_step_keeps_the_unit_that_explains_most_of_what_is_read(seed):
    x = activations(12, seed=seed)
    x = (x - x.mean(0)) / x.std(0)
    read = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 10))
    chosen = []
    for _ in range(6):
        rest = [unit for unit in range(12) if unit not in chosen]
        chosen.append(min(rest, key=lambda unit: unexplained(x, [*chosen, unit], read)))
    match = select_match(torch.corrcoef(x.T), [6, 6], readers=read)
    assert match.kept.nonzero().flatten().tolist() == sorted(chosen)
    near = torch.corrcoef(x.T)[:, sorted(chosen)].max(1)
    assert torch.equal(match.labels, near.indices.where(near.values > 0, -1))


def one_by_one(similarity, keep, root):
    """The greedy choice by the whole residual, one unit at a time."""
    residual = similarity.clone()
    chosen = []
    for _ in range(keep):
        score = (root @ residual).square().sum(0) / residual.diagonal().clamp(min=1e-12)
        score[chosen] = -1
        unit = int(score.argmax())
        chosen.append(unit)
        residual -= torch.outer(residual[unit], residual[unit]) / residual[unit, unit]
    return chosen


@pytest.mark.parametrize(("doubles", "rows"), [(2048, 1536), (0, 1536), (0, 300)], ids=["double", "float", "mixed"])
@pytest.mark.parametrize("read_by", [None, 200])
def test_a_choice_in_blocks_explains_what_a_choice_one_by_one_does(monkeypatch, doubles, rows, read_by):
    monkeypatch.setattr(subset, "DOUBLE", doubles)
    monkeypatch.setattr(subset, "ROWS", rows)
    units = 700
    draw = torch.Generator().manual_seed(0)
    causes = torch.randn(3000, units, generator=draw, dtype=torch.float64) * torch.arange(1, units + 1) ** -0.5
    x = (causes @ torch.randn(units, units, generator=draw, dtype=torch.float64)).relu()
    x = (x - x.mean(0)) / x.std(0)
    similarity = torch.corrcoef(x.T)
    root = torch.eye(units).double()
    if read_by:
        root = torch.randn(read_by, units, generator=draw, dtype=torch.float64)
    ours = subset.best_subset(similarity, units // 2, None if read_by is None else root)
    assert len(set(ours.tolist())) == units // 2
    left = [unexplained(x, chosen, root) for chosen in (ours.tolist(), one_by_one(similarity, units // 2, root))]
    assert abs(left[0] - left[1]) < 0.01 * float((x @ root.T).square().sum())
    if rows == 1536:
        assert left[0] < 1.01 * left[1]


def test_what_is_not_read_is_kept_by_what_is_left_of_it():
    x = activations(12)
    read = torch.zeros(1, 12, dtype=torch.float64)
    read[0, 3] = 1
    order = subset.best_subset(torch.corrcoef(x.T), 6, read).tolist()
    assert order[0] == 3
    assert len(set(order)) == 6


def test_any_number_of_units_is_kept_and_more_never_explain_less():
    x = activations(10)
    similarity = torch.corrcoef(x.T)
    errors = [
        unexplained(x, select_match(similarity, [5, 5], keep=k).kept.nonzero().flatten(), torch.eye(10).double())
        for k in range(1, 11)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-9
    with pytest.raises(OptionError, match="keep is 11"):
        select_match(similarity, [5, 5], keep=11)


def test_a_unit_that_nothing_reads_is_not_kept():
    read = torch.eye(8, dtype=torch.float64)
    read[2:5] = 0
    independent = torch.randn(8, 999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = select_match(torch.corrcoef(independent), [4, 4], readers=read).kept
    assert not kept[2:5].any()


def test_groups_keep_what_was_kept_inside_them():
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0)).double()
    [match] = match_groups([torch.corrcoef(torch.cat([x, x], 1).T)], 2, 2, [select_match])
    assert match.kept.sum() == 8
    assert torch.equal(match.aim.labels[match.kept].sort().values, torch.arange(8))


def test_readers_give_the_error_of_the_layers_that_read_a_space():
    model = tiny("cifar_resnet20")
    binding, state = find_spec(load_source(model)), model.state_dict()
    space = binding.spaces["layer1.0.mid1"]
    weight = state["layer1.0.conv2.weight"].double().flatten(2)
    moments = Moments.empty(2 * space.size)
    moments.update(torch.randn(99, 2 * space.size, generator=torch.Generator().manual_seed(0)).double())
    covariance = moments.covariance
    found = readers([state, state], binding, space, covariance)
    error = torch.randn(space.size, dtype=torch.float64)
    padded = torch.cat([error, torch.zeros_like(error)])
    varies = torch.einsum("oit,ojt,ij->", weight, weight, covariance[: space.size, : space.size])
    given = padded * covariance.diagonal().sqrt()
    expected = torch.einsum("oit,i->ot", weight, given[: space.size]).square().sum() / varies
    assert torch.allclose((found.double() @ padded).square().sum(), expected, rtol=1e-4)
    half = len(found) // 2
    assert len(found) <= 2 * space.size
    assert not found[:half, space.size :].any()
    assert not found[half:, : space.size].any()


def test_a_refit_aims_at_the_kept_units_alone():
    binding = find_spec(load_source(tiny("cifar_resnet20")))
    n = binding.spaces["stem"].size
    labels = torch.arange(n).repeat(2)
    kept = (labels % 2 == 0) | (torch.arange(2 * n) >= n)  # of odd units the second model's alone
    match = Match(labels, (n, n), n, kept=kept)
    matches = {"stem": match}
    ours = torch.randn(2, 1, n)
    theirs = torch.randn(2, 1, n)
    target = trunk_target(binding, matches, "conv1.weight", [n, n], per_task=False)
    out = target([ours, theirs], torch.zeros(2, dtype=torch.long))
    assert torch.equal(out[..., 1::2], theirs[..., 1::2])
    assert torch.allclose(out[..., ::2], (ours + theirs)[..., ::2] / 2)

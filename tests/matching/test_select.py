"""Selection of units, beside a slow greedy choice that projects step by step."""

import pytest
import torch

from hf_zipit.calibration.refit.targets import trunk_target
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
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
    match = select_match(torch.corrcoef(x.T), [6, 6], readers=read.T @ read)
    assert match.kept.nonzero().flatten().tolist() == sorted(chosen)
    near = torch.corrcoef(x.T)[:, sorted(chosen)].argmax(1)
    assert torch.equal(match.labels, near)


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
    assert torch.allclose(padded @ found @ padded, expected, rtol=1e-4)
    assert not found[: space.size, space.size :].any()


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

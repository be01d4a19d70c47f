"""Trunks wider and narrower than a model, what they cost, what a budget buys, and the controls."""

from itertools import product

import pytest
import torch
import transformers

import hf_zipit
from hf_zipit.costs import LayerCosts
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.controls import random_match
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.permute import permute_match
from hf_zipit.matching.widen import split_match, unit_count
from hf_zipit.merging.budget import Depth, free_spaces, spend, unexplained
from hf_zipit.merging.merger import Merger
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.statistics.moments import Moments
from hf_zipit.transform.match import Match
from tests.helpers.marks import slow
from tests.helpers.measure import flops
from tests.helpers.models import TINY, hf_vit, images, shuffled, timm_vit, tiny, vgg
from tests.helpers.wholes import segformer, small

ARGS = {name: {k: v for k, v in args.items() if k != "num_classes"} for name, args in TINY.items()}
PIXELS = images(4, seed=9)[0]
TASKS = {"tasks": ["a", "b"]}


def task_logits(model):
    with torch.no_grad():
        return model(PIXELS).task_logits


def distance(logits, wanted):
    """The mean squared difference of log probabilities: a refit leaves out what softmax ignores."""
    return (logits.log_softmax(-1) - wanted.log_softmax(-1)).square().mean()


@pytest.mark.parametrize("cut", [None, "layer2"])
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnext50_32x4d", "seresnet50"])
@pytest.mark.sample(2)
def test_a_trunk_as_wide_as_all_models_is_the_ensemble(name, cut):
    sources = [tiny(name, seed) for seed in (0, 1)]
    loaded = [load_source(source, ARGS[name]) for source in sources]
    merged = hf_zipit.merge(loaded, images(), width=2, cut=cut, calibrate="none", **TASKS)
    for out, source in zip(task_logits(merged).values(), sources, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(out, source(PIXELS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["zip", "permute", "kmeans", "partial-ot"])
@pytest.mark.parametrize("width", [1.5, 1.2])
@pytest.mark.sample(2)
def test_wider_merges_of_permuted_copies_give_the_model_back(method, width):
    model = tiny("cifar_resnet20")
    merged = hf_zipit.merge([model, shuffled(model)], images(), method=method, width=width, calibrate="none", **TASKS)
    assert merged.trunk.conv1.out_channels == round(16 * width)
    for out in task_logits(merged).values():
        with torch.no_grad():
            torch.testing.assert_close(out, model(PIXELS), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("width", [0.5, 1.5])
@pytest.mark.parametrize("cut", [None, "layer2"])
@pytest.mark.sample(2)
def test_other_widths_are_saved_loaded_and_counted(width, cut, tmp_path):
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(sources, images(), width=width, cut=cut, **TASKS)
    loaded = load_merged(saving.save(merged, tmp_path / "merged"))
    for task, out in task_logits(loaded).items():
        assert torch.equal(out, task_logits(merged)[task])
    assert loaded.config.zipit["recipe"]["width"] == width
    binding = find_spec(load_source(sources[0]))
    ratios = {
        space["name"]: space["width"] / binding.spaces[space["name"]].size for space in merged.config.zipit["spaces"]
    }
    assert set(ratios.values()) == {width}
    depth = len(merged.config.trunk)
    costs = LayerCosts(sources[0], binding, (3, 32, 32), [5, 5])
    expected = costs.flops(depth, ratios, gathers=cut is not None)
    assert flops(merged, PIXELS) == pytest.approx(expected * flops(sources[0], PIXELS), rel=1e-6)


@pytest.mark.slow
def test_refit_merges_may_be_wider_and_narrower():
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    errors = []
    for width in (0.5, 2.0):
        merged = hf_zipit.merge(sources, images(32), width=width, calibrate="refit", **TASKS)
        with torch.no_grad():
            pairs = zip(task_logits(merged).values(), sources, strict=True)
            errors.append(sum(float(distance(out, source(PIXELS))) for out, source in pairs))
    assert errors[1] < 1e-3 < errors[0]


@pytest.mark.parametrize(("make", "expected"), [(hf_vit, {"mlp"}), (timm_vit, {"mlp"}), (vgg, None)])
@pytest.mark.sample(2)
def test_only_spaces_that_the_modules_can_have_at_another_width_are_free(make, expected):
    source = load_source(make())
    binding = find_spec(source)
    free = free_spaces(source.model, binding, source.input_size)
    assert free == {n for n in binding.spaces if expected is None or n.rpartition(".")[2] in expected}
    if expected is not None:
        merged = hf_zipit.merge([make(seed) for seed in (0, 1)], images(16), width=1.25, calibrate="none", **TASKS)
        assert all(out.isfinite().all() for out in task_logits(merged).values())
        widths = {space["name"]: space["width"] for space in merged.config.zipit["spaces"]}
        assert {name for name, width in widths.items() if width > binding.spaces[name].size} == free


def test_units_that_fit_worst_are_split_off_first():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(12, 12, generator=generator)
    similarity = similarity + similarity.T
    match = permute_match(similarity, [4, 4, 4])
    for keep in range(4, 13):
        found = split_match(match, similarity, keep)
        assert found.width == keep == len(found.labels.unique())
    first = split_match(match, similarity, 5).labels
    moved = int((first != match.labels).nonzero())
    mates = [
        (similarity[i, [j for j in range(12) if j != i and match.labels[j] == match.labels[i]]].mean())
        for i in range(12)
    ]
    assert mates[moved] == min(mates)
    with pytest.raises(OptionError, match="keep is 3, below the 4 units of the match"):
        split_match(match, similarity, 3)


def test_widths_are_whole_groups():
    assert [unit_count(12, 3, 2, ratio) for ratio in (0.01, 0.5, 1.2, 5.0)] == [3, 6, 15, 24]


def test_what_is_unexplained_is_what_least_squares_leave():
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moments = Moments.empty(6)
    moments.update(x)
    match = Match(torch.tensor([0, 1, 1, 0, 2, 2]), (3, 3), 3)
    x = (x - x.mean(0)) / x.std(0, correction=0)
    merged = (x * moments.covariance.diagonal().sqrt()) @ match.merge.double().T
    rest = x - merged @ torch.linalg.lstsq(merged, x).solution
    statistics = SpaceStatistics(None, (3, 3), moments)
    assert unexplained(statistics, match) == pytest.approx(float(rest.square().sum() / x.square().sum()), abs=1e-4)
    assert unexplained(statistics, Match(torch.arange(6), (3, 3), 6)) == pytest.approx(0, abs=1e-4)


def test_a_budget_is_kept_and_more_of_it_leaves_less_unexplained():
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = Merger(sources, images(), **TASKS)
    one, spent = flops(sources[0], PIXELS), []
    for budget in (0.7, 1.3):
        merged = merger.merge(method="zip", flops_budget=budget, calibrate="none")
        spent.append(flops(merged, PIXELS) / one)
        assert 0.85 * budget < spent[-1] <= budget
    fixed = merger.merge(method="zip", flops_budget=1.8, cut="layer1", calibrate="none")
    assert fixed.config.cut == "layer1"
    assert 1.65 < flops(fixed, PIXELS) / one <= 1.8
    least = merger.merge(method="zip", flops_budget=1, calibrate="none")
    plain = merger.merge(method="zip", calibrate="none")
    assert flops(least, PIXELS) == flops(plain, PIXELS) > one  # the classifiers of further tasks


def test_a_budget_is_spent_nearly_as_well_as_by_trying_all_widths():
    """PLeaS chooses the widths of all layers by an integer program; its best choice is found here by trying all."""
    model = tiny("cifar_resnet20")
    binding = find_spec(load_source(model))
    costs = LayerCosts(model, binding, (3, 32, 32), [5, 5])
    depth = Depth(len(binding.steps) - 1, tuple(binding.spaces), False)
    widths = (1.0, 1.25, 1.5, 1.75, 2.0)
    choices = [dict(zip(binding.spaces, chosen, strict=True)) for chosen in product(widths, repeat=len(binding.spaces))]
    flops_of = torch.tensor([costs.flops(depth.steps, chosen, gathers=False) for chosen in choices])
    gaps = []
    for seed in range(6):
        g = torch.Generator().manual_seed(seed)
        shapes = {name: torch.rand(2, generator=g).tolist() for name in binding.spaces}  # height, and how it falls
        errors = {
            name: {w: (0.1 + height) * (2 - w) ** (0.5 + 2 * fall) for w in widths}
            for name, (height, fall) in shapes.items()
        }
        lost = torch.tensor([sum(errors[name][w] for name, w in chosen.items()) for chosen in choices])
        for budget in (1.3, 1.7, 2.5):
            offer = spend(budget, [depth], costs, errors)
            assert offer.flops <= budget
            equal = [n for n, chosen in enumerate(choices) if len(set(chosen.values())) == 1 and flops_of[n] <= budget]
            assert offer.error < lost[equal].min()
            gaps.append(float(offer.error - lost[flops_of <= budget].min()) / float(lost.max()))
    assert sum(gaps) / len(gaps) < 0.01
    assert max(gaps) < 0.1


def test_pleas_spends_a_budget_on_the_spaces_that_need_it():
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(sources, images(32), preset="pleas", flops_budget=1.4, cut="none", **TASKS)
    recipe = merged.config.zipit["recipe"]
    assert (recipe["method"], recipe["calibrate"], recipe["flops_budget"]) == ("permute", "refit", 1.4)
    assert 1.2 < flops(merged, PIXELS) / flops(sources[0], PIXELS) <= 1.4
    binding = find_spec(load_source(sources[0]))
    wider = {space["width"] / binding.spaces[space["name"]].size for space in merged.config.zipit["spaces"]}
    assert len(wider) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width is 0: it must be positive"),
        ({"width": 3}, "width is 3: .* at most 2, the number of models"),
        ({"width": 1.5, "method": "average"}, "'average' supports only width 1, as it compares nothing"),
        ({"width": 0.5, "method": "permute"}, "'permute' supports no width below 1"),
        ({"flops_budget": 0.01}, "flops_budget is 0.01: these models need at least 0"),
        ({"flops_budget": 1.5, "width": 1.5}, "give only one of them"),
        ({"flops_budget": 1.5, "method": "git-rebasin"}, "flops_budget reads activations"),
    ],
)
def test_impossible_widths_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        hf_zipit.merge([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(), **TASKS, **options)


@pytest.mark.parametrize("cut", [None, slow("layer2")])
@pytest.mark.slow
def test_the_control_of_one_parent_is_its_trunk(cut):
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    for method, mine in (("first-parent", 0), ("last-parent", 1)):
        merged = hf_zipit.merge(sources, images(), method=method, cut=cut, calibrate="refit", **TASKS)
        plain = hf_zipit.merge(sources, images(), method=method, cut=cut, calibrate="none", **TASKS)
        out, before = list(task_logits(merged).values()), list(task_logits(plain).values())
        with torch.no_grad():
            wanted = [logits_of(source(PIXELS)) for source in sources]
        torch.testing.assert_close(before[mine], wanted[mine], rtol=1e-4, atol=1e-4)
        assert distance(out[mine], wanted[mine]) < 1e-6
        other = 1 - mine
        assert distance(out[other], wanted[other]) < distance(before[other], wanted[other])


def test_the_random_control_moves_whole_groups_one_to_one():
    match = random_match([12] * 3, 3)
    for model in range(3):
        labels = match.of(model)
        assert sorted(labels.tolist()) == list(range(12))
        assert all(len(set((block // 4).tolist())) == 1 for block in labels.view(3, 4))
    assert torch.equal(random_match([12] * 3, 3).labels, match.labels)
    assert not torch.equal(match.of(1), match.of(0))
    assert [name for name, method in METHODS.items() if method.control] == ["first-parent", "last-parent", "random"]


def test_widths_at_which_the_models_do_not_run_are_refused():
    """SegFormer's attention splits its channels into heads of a fixed size, so that not every width runs."""
    sources = [small(lambda: segformer(transformers.SegformerForImageClassification, 5), seed, 64) for seed in (0, 1)]
    with pytest.raises(OptionError, match=r"width is 1\.25: these models do not run with the units that it gives"):
        hf_zipit.merge(sources, images(8, size=64), width=1.25, calibrate="none", **TASKS)

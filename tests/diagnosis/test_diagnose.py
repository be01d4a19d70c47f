"""The diagnosis: trials against single merges, what it recommends, and what it says of models that gain nothing."""

import json

import pytest
import torch

import hf_zipit
from hf_zipit.diagnosis.candidates import candidates
from hf_zipit.diagnosis.diagnose import BUDGETS, FULL, Trial, advice, recommended
from hf_zipit.diagnosis.report import diagnosis_text, plot_diagnosis
from hf_zipit.diagnosis.survival import survival
from hf_zipit.errors import OptionError
from hf_zipit.merging.judge import judge
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.verdict import TaskVerdict
from hf_zipit.recipe import Recipe
from tests.helpers.marks import slow
from tests.helpers.models import hf_vit, images, tiny


def trial(name, flops, kept, **tasks):
    return Trial(name, None, 1.0, flops, kept, tasks)


def test_the_best_within_each_budget_is_recommended_and_the_cheaper_if_they_are_close():
    trials = [trial(FULL, 1.001, 0.9), trial("--cut c", 1.2, 0.903), trial("--cut b", 1.45, 0.96), trial("x", 1.8, 1.0)]
    assert recommended(trials) == {"1": FULL, "1.25": FULL, "1.5": "--cut b"}
    assert recommended(trials[1:]) == {"1.25": "--cut c", "1.5": "--cut b"}


def test_the_advice():
    well = TaskVerdict(images=50, agreement=0.9, control=0.8, chance=0.3, kept=0.95, expected=None)
    noise = TaskVerdict(images=50, agreement=0.31, control=0.3, chance=0.3, kept=0.9, expected=None)
    none = TaskVerdict(images=2, agreement=0.5, control=0.5, chance=0.5, kept=0.5, expected=None)
    assert advice([trial(FULL, 1, 0.95, a=well)], "a", 0.9) == []
    (sentence,) = advice([trial(FULL, 1, 0.905, a=well)], "a", 0.9)
    assert sentence.startswith("do not merge these: the trunk of a alone")
    (sentence,) = advice([trial(FULL, 1, 0.905, a=well), trial("--cut b", 1.4, 0.97, a=well)], "a", 0.9)
    assert "a full merge is no better" in sentence
    assert "--cut b is, for 1.40 times the FLOPs of one model" in sentence
    (sentence,) = advice([trial(FULL, 1, 0.95, a=well, b=noise)], "a", 0.9)
    assert "on b even the best trial answers as its parent hardly more often than chance" in sentence
    (sentence,) = advice([trial(FULL, 1, 0.95, a=well, b=none)], "a", 0.9)
    assert "nothing is known of b" in sentence


@pytest.mark.parametrize("make", [slow(lambda seed: hf_vit(seed)), lambda seed: tiny("cifar_resnet20", seed)])
def test_trials_are_merges_judged_by_the_same_rule(make, tmp_path):
    models = [make(seed) for seed in (0, 1)]
    options = {"tasks": ["a", "b"], "cache": False, "method": "select", "calibrate": "batchnorm"}
    found = hf_zipit.diagnose(models, images(150), **options)
    merger = Merger(models, images(150), **options)
    assert found.trials[0].name == FULL
    for one in found.trials:
        recipe = merger.recipe.changed(cut=one.cut, width=one.width)
        merged = merger.merge(recipe)
        verdict = judge(merger, merged, recipe)
        assert (one.kept, one.tasks) == (verdict.kept, verdict.tasks)
        cost = merger.parents.cost(merger.tasks, merger.plan(recipe)).flops
        assert one.flops == pytest.approx(cost / merger.parents.costs[0].flops, abs=1e-3)
        assert one.flops < 2
    assert len({round(one.flops, 2) for one in found.trials if one.cut}) == sum(
        one.cut is not None for one in found.trials
    )
    assert set(found.recommended) <= {f"{budget:g}" for budget in BUDGETS}
    json.dumps(found.to_dict(), allow_nan=False)
    text = diagnosis_text(found)
    assert all(one.name in text for one in found.trials)
    assert "control: trunk of" in text
    picture = plot_diagnosis(found, tmp_path / "d.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_survival_is_what_a_regression_on_the_merged_units_explains():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merger = Merger(models, images(96), tasks=["a", "b"], cache=False)
    recipe = merger.recipe.changed(method="zip", calibrate="none")
    matches = merger.match(merger.plan(recipe), recipe)
    statistics = merger.statistics(matches)
    found = survival(matches, statistics, 2)
    name = next(iter(matches))
    covariance = statistics[name].moments.covariance
    merge = matches[name].aim.merge.to(covariance)
    factor = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(len(covariance), dtype=covariance.dtype))
    units = factor.T  # samples with this covariance
    read = units @ merge.T
    fitted = read @ torch.linalg.lstsq(read, units).solution
    shares = 1 - (units - fitted).square().sum(0) / units.square().sum(0)
    for mine, part in zip(found[name], shares.split(statistics[name].sizes), strict=True):
        assert mine == pytest.approx(float(part.mean()), abs=1e-3)
    assert all(0 <= value <= 1 + 1e-6 for mine in found.values() for value in mine)


def test_a_model_merged_with_itself_is_not_worth_it(digits, digits_data):
    found = hf_zipit.diagnose([digits[0], digits[0]], digits_data, tasks=["a", "b"], num_images=100, cache=False)
    assert not found.merge
    assert "the same trunk" in found.relation
    assert any("do not merge these" in sentence for sentence in found.advice)


@pytest.mark.parametrize("options", [{"cut": "layer1"}, {"width": 1.5}, {"flops_budget": 1.5}])
def test_what_a_diagnosis_varies_is_refused(options):
    with pytest.raises(OptionError, match="leave out cut, width and flops_budget"):
        hf_zipit.diagnose([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(150), **options)


def test_a_merge_with_a_cut_is_tried_at_its_cut_only():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    options = {"method": "average", "calibrate": "none", "cache": False}
    inner = hf_zipit.merge(models, images(100), cut="layer2", tasks=["a", "b"], **options)
    found = hf_zipit.diagnose([inner, models[0]], images(100), tasks=["a", "b", "c"], **options)
    assert [one.name for one in found.trials] == [FULL]
    assert found.trials[0].cut == inner.config.cut


def test_a_model_whose_stages_end_at_one_cost_is_tried_at_its_blocks():
    merger = Merger([hf_vit(seed) for seed in (0, 1)], images(8), tasks=["a", "b"], cache=False, verdict=False)
    found = candidates(merger, Recipe(method="select"))
    cuts = [one for one in found if one.name.startswith("--cut ")]
    assert cuts
    assert all(one.flops > found[0].flops for one in cuts)


def test_too_few_images_are_refused():
    with pytest.raises(OptionError, match="there are too few: give 100 of each data set"):
        hf_zipit.diagnose([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(64), cache=False)


def test_the_command_prints_and_draws_and_writes_nothing_else(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 60, "--method", "select", "--calibrate", "batchnorm"]
    code, printed, err = run("diagnose", *digits, *options, "--plot", tmp_path / "d.png")
    assert code == 0, err
    assert printed.startswith("Relation: the models have initialisations of their own")
    assert "Within 1x FLOPs: " in printed
    assert [file.name for file in tmp_path.iterdir()] == ["d.png"]
    code, printed, _ = run("diagnose", *digits, *options, "--json")
    assert json.loads(printed)["trials"][0]["name"] == FULL
    code, _, err = run("diagnose", *digits, *options, "--plot", tmp_path / "gone" / "d.png")
    assert code == 2
    assert "there is no folder" in err

"""What is chosen where method and calibration are `auto`: by the relation of the models, and by the data."""

import copy
import logging

import pytest
import torch

import hf_zipit
from hf_zipit.assembly.kinds import open_parents
from hf_zipit.calibration.presets import PRESETS
from hf_zipit.errors import OptionError
from hf_zipit.merging.automatic import calibration, likely
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.relation import ONE_BASE, OWN, SAME, relation
from hf_zipit.recipe import Recipe, read_recipe
from hf_zipit.sources.load import load_source
from tests.helpers.models import cifar_vgg, hf_vit, images, shuffled, tiny


def tuned(model, seed=9, size=0.1):
    """A copy that was trained a little: its weights are changed by a tenth."""
    out = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for parameter in out.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += size * parameter.data.std(correction=0) * noise
    return out


def related(*models):
    parents = open_parents([load_source(model) for model in models])
    return relation(parents.states, parents.binding)


@pytest.mark.parametrize("make", [hf_vit, lambda seed: tiny("resnet50", seed), lambda seed: cifar_vgg(seed)])
def test_the_relation_is_read_from_the_weights(make):
    one = make(0)
    own = related(one, make(1))
    assert own.kind == OWN
    assert abs(own.agreement) < 0.1
    based = related(one, tuned(one))
    assert based.kind == ONE_BASE
    assert based.agreement > 0.9
    assert related(one, one).kind == SAME
    assert related(one, shuffled(one)).kind == OWN  # the same function, but its units are in another order
    assert related(one, tuned(one), make(1)).kind == OWN  # of several, the least related two count
    assert set(based.spaces) <= set(open_parents([load_source(one)]).binding.spaces)


@torch.no_grad()
def test_only_equal_models_have_the_same_trunk():
    one, other = tiny("cifar_resnet20", 0), tiny("cifar_resnet20", 1)
    assert related(one, one, other).kind == OWN  # two that share a trunk, and a stranger
    normed = copy.deepcopy(one)
    for module in normed.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.copy_(torch.rand_like(module.weight) + 0.5)
    assert related(one, normed).kind == ONE_BASE
    headed = copy.deepcopy(one)
    headed.get_classifier().weight.normal_()
    assert related(one, headed).kind == SAME


@torch.no_grad()
def test_equal_trunks_stay_as_they_are():
    one = tiny("cifar_resnet20", 0)
    other = copy.deepcopy(one)
    other.get_classifier().weight.normal_(generator=torch.Generator().manual_seed(1))
    merged = hf_zipit.merge([one, other], images(60), tasks=["a", "b"], cache=False)
    pixels = images(8, seed=5)[0]
    for model, logits in zip((one, other), merged(pixels).task_logits.values(), strict=True):
        torch.testing.assert_close(logits, model(pixels), rtol=1e-4, atol=1e-5)


def test_models_of_one_base_take_a_budget_and_no_width_without_images():
    one = tiny("cifar_resnet20", 0)
    assert [r.method for r in choice([one, tuned(one)], images(20), flops_budget=1.3).recipes] == ["select"]
    with pytest.raises(OptionError, match="without images they can only be averaged, at width 1: give --data"):
        choice([one, tuned(one)], None, width=1.5)


def test_a_merge_is_merged_with_a_model_of_the_same_base_on_a_data_set_each():
    """Candidates are compared on the images of the model, not of the task with its number."""
    one = tiny("cifar_resnet20", 0)
    options = {"method": "average", "calibrate": "none", "verdict": False}
    inner = hf_zipit.merge([one, tuned(one)], images(20), tasks=["a", "b"], cache=False, **options)
    outer = hf_zipit.merge([inner, one], [images(20), images(20, seed=1)], tasks=["a", "b", "c"], cache=False)
    assert set(outer.config.zipit["choice"]["tried"]) == {"select", "average"}


def choice(models, sets, **options):
    merger = Merger(models, sets, cache=False)
    return merger.choice(merger.recipe.changed(**options))


def test_the_rule():
    one, other = tiny("cifar_resnet20", 0), tiny("cifar_resnet20", 1)
    both = [images(20), images(20, seed=1)]
    assert [r.method for r in choice([one, other], images(20)).recipes] == ["select"]
    assert [r.method for r in choice([one, tuned(one)], images(20)).recipes] == ["select", "average"]
    assert [r.method for r in choice([one, tuned(one)], images(20), width=1.5).recipes] == ["select"]
    assert [r.method for r in choice([one, one], images(20)).recipes] == ["average"]
    (without,) = choice([one, tuned(one)], None).recipes
    assert (without.method, without.calibrate) == ("average", "none")
    with pytest.raises(OptionError, match=r"initialisations of their own .* hardly better than chance: give --data"):
        choice([one, other], None)
    (named,) = choice([one, other], images(20), method="zip").recipes
    assert (named.method, named.calibrate) == ("zip", "refit-joint")
    (kept,) = choice([one, other], both, calibrate="batchnorm").recipes
    assert (kept.method, kept.calibrate) == ("select", "batchnorm")


def test_the_calibration_follows_the_data_and_the_architecture():
    def chosen(models, sets):
        merger = Merger(models, sets, cache=False)
        return calibration(merger.parents, merger.passes.images)[0]

    normed = [tiny("cifar_resnet20", 0), tiny("cifar_resnet20", 1)]
    plain = [hf_vit(0), hf_vit(1)]
    assert chosen(normed, None) == "none"
    assert chosen(normed, images(8)) == "batchnorm"
    assert chosen(plain, images(8)) == "none"
    assert chosen(normed, images(20)) == "refit-joint"
    assert chosen(plain, images(20)) == "refit"
    assert chosen(plain, [images(20), images(20)]) == "refit-joint"
    several = [hf_vit(seed, problem_type="multi_label_classification") for seed in (0, 1)]
    assert chosen(several, [images(20), images(20)]) == "refit"


def test_the_plain_call_is_the_merge_that_it_records_and_says_why(caplog):
    caplog.set_level(logging.INFO, logger="hf_zipit")
    models = [hf_vit(0), hf_vit(1)]
    plain = hf_zipit.merge(models, images(24), tasks=["a", "b"], cache=False)
    named = hf_zipit.merge(
        models, images(24), tasks=["a", "b"], method="select", calibrate="refit", heads="all", cache=False
    )
    assert all(torch.equal(value, named.state_dict()[name]) for name, value in plain.state_dict().items())
    about = plain.config.zipit
    assert (about["recipe"]["method"], about["recipe"]["calibrate"]) == ("select", "refit")
    assert all(reason in caplog.text for reason in about["choice"]["reasons"])
    assert "choice" not in named.config.zipit


def test_of_two_candidates_the_nearer_to_the_parents_is_kept():
    one = hf_vit(0)
    merger = Merger([one, tuned(one, size=0.5)], images(100), cache=False)
    assert merger.held_out is not None
    chosen = merger.merge()
    tried = chosen.config.zipit["choice"]["tried"]
    assert set(tried) == {"select", "average"}
    scores = {}
    for method in tried:
        made = merger.merge(method=method, calibrate="refit")
        scores[method] = merger.nearness(made)
        if method == chosen.config.zipit["recipe"]["method"]:
            assert all(torch.equal(v, made.state_dict()[k]) for k, v in chosen.state_dict().items())
    assert tried == {method: pytest.approx(score, abs=1e-4) for method, score in scores.items()}
    assert chosen.config.zipit["recipe"]["method"] == max(scores, key=scores.get)


def test_a_dry_run_takes_what_is_likely():
    assert likely(Recipe(data="d")).decisions == Recipe(method="select", calibrate="refit").decisions
    assert likely(Recipe()).method == "average"
    named = Recipe(method="zip", calibrate="none")
    assert likely(named) is named


def test_a_preset_overrides_a_recipe_file(tmp_path):
    file = tmp_path / "r.yml"
    file.write_text("method: select\ncalibrate: none\nsources: [a/b, c/d]\n")
    recipe = read_recipe(file, preset="pleas")
    assert (recipe.method, recipe.calibrate) == ("permute", "refit")


def test_presets_are_the_settings_of_papers():
    for name, values in PRESETS.items():
        recipe = Recipe(preset=name)
        assert {key: getattr(recipe, key) for key in values} == values
        assert recipe.preset is None  # what it stands for is recorded
        assert Recipe().changed(preset=name) == recipe
    assert Recipe(preset="zipit", calibrate="none").calibrate == "none"
    assert Recipe(preset="zipit").changed(calibrate="refit").method == "zip"
    with pytest.raises(OptionError, match="unknown preset 'zippit'; presets: zipit, mudsc"):
        Recipe(preset="zippit")
    with pytest.raises(OptionError, match="preset 'mudsc' is method mudsc-zip, and method is 'zip': give only one"):
        Recipe(preset="mudsc", method="zip")
    with pytest.raises(OptionError, match="compat follows the authors' code"):
        Recipe(compat=True)


def test_with_a_base_its_differences_are_a_candidate(tmp_path):
    base = tiny("cifar_resnet20", 0)
    models = [copy.deepcopy(base) for _ in range(2)]
    with torch.no_grad():
        for seed, model in enumerate(models):
            generator = torch.Generator().manual_seed(seed)
            for value in model.parameters():
                value += 0.02 * torch.randn(value.shape, generator=generator)
    merged = hf_zipit.merge(models, base=base)
    assert (merged.config.zipit["recipe"]["method"], merged.config.zipit["recipe"]["scale"]) == ("tsv", 1.0)
    chosen = hf_zipit.merge(models, images(100), base=base, cache=False).config.zipit
    assert set(chosen["choice"]["tried"]) == {"select", "tsv"}
    assert isinstance(chosen["recipe"]["scale"], float) == (chosen["recipe"]["method"] == "tsv")

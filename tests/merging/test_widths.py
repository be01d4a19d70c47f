"""Parents of one architecture with different widths: exact merges, refusals, costs, and what is saved."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

import hf_zipit
from hf_zipit.assembly.kinds import open_parents
from hf_zipit.costs import cost_of, count_flops
from hf_zipit.diagnosis.diagnose import diagnose
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.evaluation.inspection import merge_inspection
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.permute import permute_match
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.merging.merger import Merger
from hf_zipit.models.modeling_zipit import build_backbone
from hf_zipit.recipe import Recipe
from hf_zipit.saving.save import save
from hf_zipit.sources.load import load_source
from tests.helpers.marks import slow
from tests.helpers.models import hf_vit, images, shuffled, timm_vit, tiny
from tests.saving.test_save import PIXELS as READ_PIXELS
from tests.saving.test_save import read_in_new_process

IMAGES = images(24, batch=8)
PIXELS = torch.cat(IMAGES)
SPLIT = pytest.mark.parametrize("cut", [None, "layer2", "layer1"])


def doubled(model, wide):
    """`wide`, with every unit of `model` twice, half of it for each reader: the same features."""
    state = model.state_dict()
    for name, rows in find_spec(load_source(model)).rows(state).items():
        for row in rows:
            state[name] = torch.cat([state[name]] * 2, row.axis)
            state[name] = state[name] / 2 if row.role == "read" else state[name]
    own = wide.state_dict()
    own.update({name: value for name, value in state.items() if value.shape == own[name].shape})
    wide.load_state_dict(own)
    return shuffled(wide, seed=3)


def padded(model, wide):
    """`wide`, with the units of `model` and as many more that are zero and that nothing reads."""
    state = model.state_dict()
    for name, rows in find_spec(load_source(model)).rows(state).items():
        for row in rows:
            state[name] = torch.cat([state[name], torch.zeros_like(state[name])], row.axis)
    own = wide.state_dict()
    own.update({name: value for name, value in state.items() if value.shape == own[name].shape})
    wide.load_state_dict(own)
    return shuffled(wide, seed=3)


def narrow_and_wide():
    """A model of width 1 with 5 classes, and one of width 2 with the same features in another order, and 5 others."""
    narrow = tiny("cifar_resnet20")
    wide = doubled(narrow, tiny("cifar_resnet20", 1, width=2))
    return narrow, wide


def merger(models, **options):
    tasks = list("abcd")[: sum(len(load_source(model).tasks) for model in models)]
    return Merger(models, IMAGES, cache=False, tasks=tasks, verdict=False, **options)


@torch.no_grad()
def answers(merged):
    return merged(PIXELS).task_logits


def test_doubling_keeps_the_function():
    narrow, wide = narrow_and_wide()
    with torch.no_grad():
        torch.testing.assert_close(narrow(PIXELS), wide(PIXELS), rtol=1e-3, atol=1e-3)


@SPLIT
@pytest.mark.parametrize("method", ["zip", "select", "permute", "kmeans"])
@pytest.mark.parametrize("turned", [False, True], ids=["narrow first", "wide first"])
def test_a_model_and_its_doubled_copy_are_merged_exactly(method, cut, turned):
    models = narrow_and_wide()[:: -1 if turned else 1]
    merged = merger(models).merge(method=method, cut=cut, calibrate="none")
    assert merged.trunk.conv1.weight.shape[0] == 32
    with torch.no_grad():
        expected = [model(PIXELS) for model in models]
    for found, wanted in zip(answers(merged).values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cut", [None, "layer2"])
@pytest.mark.parametrize("method", ["zip", "select", "permute", "kmeans"])
def test_units_that_are_zero_leave_a_model_as_it_is(method, cut):
    narrow = tiny("cifar_resnet20")
    merged = merger([narrow, padded(narrow, tiny("cifar_resnet20", 1, width=2))]).merge(
        method=method, cut=cut, calibrate="none"
    )
    with torch.no_grad():
        wanted = narrow(PIXELS)
    for found in answers(merged).values():
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["zip", "select", "permute", "kmeans"])
def test_three_models_of_two_widths_are_merged_exactly(method):
    narrow, wide = narrow_and_wide()
    models = [shuffled(narrow), wide, narrow]
    merged = merger(models).merge(method=method, cut="layer2", calibrate="none")
    with torch.no_grad():
        wanted = narrow(PIXELS)
    assert [len(unmerge.index) for unmerge in merged.unmerge] == [32, 64, 32]
    for found in answers(merged).values():
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["zip", "select", "permute", "random"])
def test_the_order_of_the_models_makes_no_difference(method):
    a, b = tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2)
    one = answers(merger([a, b]).merge(method=method, calibrate="none"))
    other = answers(merger([b, a]).merge(method=method, calibrate="none"))
    same = torch.allclose(one["a"], other["b"], rtol=1e-3, atol=1e-3)
    assert same == (method != "random")  # which draws for all models but the first


@pytest.mark.parametrize("method", ["first-parent", "last-parent"])
@SPLIT
def test_a_control_keeps_the_trunk_of_its_parent_at_its_width(method, cut):
    models = [tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2)]
    found = merger(models)
    merged = found.merge(method=method, cut=cut, calibrate="none")
    kept = {"first-parent": 0, "last-parent": 1}[method]
    with torch.no_grad():
        torch.testing.assert_close(answers(merged)["ab"[kept]], models[kept](PIXELS))
    plan = found.plan(found.recipe.changed(method=method, cut=cut))
    assert found.parents.cost(found.tasks, plan) == cost_of(merged, (3, 32, 32))


@SPLIT
@pytest.mark.parametrize("width", [0.5, 1, 1.25])
def test_the_cost_that_is_stated_is_that_of_the_merge(cut, width):
    models = [tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2, num_classes=4), tiny("cifar_resnet20", 2)]
    found = merger(models)
    merged = found.merge(method="zip", cut=cut, width=width, calibrate="none")
    assert merged.trunk.conv1.weight.shape[0] == 32 * width
    plan = found.plan(found.recipe.changed(method="zip", cut=cut, width=width))
    assert found.parents.cost(found.tasks, plan) == cost_of(merged, (3, 32, 32))


def test_a_width_beyond_the_units_of_all_models_keeps_them_all():
    a, b = tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2)
    merged = merger([a, b]).merge(method="zip", width=2, cut="layer2", calibrate="none")
    assert merged.trunk.conv1.weight.shape[0] == 16 + 32
    with torch.no_grad():
        torch.testing.assert_close(answers(merged)["b"], b(PIXELS), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def folders(digits, tmp_path_factory):
    """A model of the digits 0 to 4, and one of width 2 of the digits 5 to 9."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    shutil.copytree(digits[1], folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"]["width"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    wide = doubled(load_source(digits[1]).model, tiny("cifar_resnet20", width=2))
    save_file(wide.state_dict(), folder / "model.safetensors")
    return [str(digits[0]), str(folder)]


@pytest.fixture(scope="module")
def of_digits(folders, digits_data):
    return Merger(folders, digits_data, cache=False, tasks=["a", "b"], num_images=60, verdict=False)


@pytest.mark.parametrize("cut", [None, "layer2"])
@pytest.mark.parametrize("calibrate", ["batchnorm", "repair", "refit", "refit-joint"])
def test_calibrations_bring_the_merge_nearer_to_its_parents(calibrate, cut, of_digits):
    ways = ("none", calibrate)
    before, after = (of_digits.nearness(of_digits.merge(method="zip", cut=cut, calibrate=way)) for way in ways)
    assert after > before


@pytest.mark.parametrize("cut", [None, "vit.layers.1"])
@pytest.mark.parametrize("method", ["zip", "select", "permute"])
def test_layers_of_other_widths_inside_blocks_are_merged_too(method, cut):
    """Only the hidden units of the MLPs differ; heads and stream are as wide in both."""
    found = merger([hf_vit(intermediate_size=32), hf_vit(1, intermediate_size=48)])
    merged = found.merge(method=method, cut=cut, calibrate="none")
    hidden = [value.shape[0] for name, value in merged.state_dict().items() if name.endswith("mlp.fc1.weight")]
    assert hidden == ([48] * 3 if cut is None else [32, 48, 48, 48])
    plan = found.plan(found.recipe.changed(method=method, cut=cut))
    assert found.parents.cost(found.tasks, plan) == cost_of(merged, (3, 32, 32))


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if not one.unequal])
def test_methods_that_need_units_of_one_number_are_refused_by_name(method):
    found = merger([tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2)])
    message = (
        rf"method is '{method}', but the models have different widths \(stem: 16, 32 units\); methods for these: zip"
    )
    with pytest.raises(OptionError, match=message):
        found.merge(method=method, calibrate="none")


@pytest.mark.parametrize(("option", "said"), [({"compat": True}, "compat"), ({"flops_budget": 1.2}, "flops_budget")])
def test_options_for_one_width_are_refused_by_name(option, said):
    found = merger([tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, width=2)])
    with pytest.raises(OptionError, match=rf"{said} .*the models have different widths"):
        found.merge(method="zip", calibrate="none", **option)


REFUSED = {
    "stream": (
        lambda: (timm_vit(), timm_vit(1, embed_dim=48)),
        r"the feature space x has 24 and 48 units, which a layer norm counts \(or no layer reads\), and only models of "
        "equal width can be merged there",
    ),
    "groups": (
        lambda: (tiny("resnext50_32x4d"), tiny("resnext50_32x4d", 1, base_width=8)),
        r"units in 4 groups and \d+ in 4 \(attention heads, or groups of a norm or a convolution\), and only models of",
    ),
    "heads": (
        lambda: (timm_vit(num_heads=2), timm_vit(1, num_heads=4)),
        r"blocks.0.qk has 24 units in 2 groups and 24 in 4 \(attention heads, or",
    ),
    "ViT-S with ViT-B": (
        lambda: (hf_vit(), hf_vit(1, hidden_size=48, num_attention_heads=8, intermediate_size=96)),
        "their configuration differs in hidden_size: 24 and 48; the feature space x has 24 and 48 units, which",
    ),
    "depth of a ViT": (
        lambda: (hf_vit(), hf_vit(1, num_hidden_layers=5)),
        r"differs in num_hidden_layers: 3 and 5; .* no block vit.layers.3; models may differ in width",
    ),
    "depth": (
        lambda: (tiny("cifar_resnet20"), tiny("cifar_resnet20", 1, depth=14, width=2)),
        "their configuration differs in width: 1 and 2; .* has a parameter layer1.1.conv1.weight, .* has none, as it "
        "has no block layer1.1; models may differ in width, but need the same blocks",
    ),
    "function": (
        lambda: (tiny("resnet18"), tiny("resnet18", 1, channels=(16, 32, 48, 64), act_layer="gelu")),
        r"which have different widths, cannot be merged: the module act1 is GELU\(.*\) and ReLU",
    ),
    "pooling": (
        lambda: (tiny("resnet18"), tiny("resnet18", 1, channels=(16, 32, 48, 64), global_pool="max")),
        "the module global_pool has pool_type max and avg",
    ),
}


@pytest.mark.parametrize(("models", "message"), REFUSED.values(), ids=REFUSED)
def test_other_differences_are_refused_by_name(models, message):
    with pytest.raises(SourceError, match=message):
        open_parents([load_source(model) for model in models()])


def test_a_merge_among_models_of_other_widths_is_refused():
    pair = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    inner = merger(pair).merge(method="average", calibrate="none")
    with pytest.raises(SourceError, match="is a merge itself; merge all models at once"):
        open_parents([load_source(inner), load_source(tiny("cifar_resnet20", 2, width=2))])


def test_a_merge_of_two_widths_is_merged_again_with_a_model_as_wide_as_its_trunk():
    narrow, wide = narrow_and_wide()
    inner = merger([narrow, wide]).merge(method="zip", cut="layer2", calibrate="none")
    found = merger([load_source(inner), shuffled(wide)])
    merged = found.merge(method="permute", cut="layer2", calibrate="none")
    plan = found.plan(found.recipe.changed(method="permute", cut="layer2"))
    assert found.parents.cost(found.tasks, plan) == cost_of(merged, (3, 32, 32))
    with torch.no_grad():
        wanted = narrow(PIXELS)
    assert [len(unmerge.index) for unmerge in merged.unmerge] == [32, 64, 64]
    for answer in answers(merged).values():
        torch.testing.assert_close(answer, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["zip", "permute", "random"])
def test_spaces_have_the_width_of_the_widest_in_each(method):
    """No model is the widest everywhere: the trunk has the widest architecture in sum, and further units."""
    sizes = [{"layers": (2, 1, 1, 1), "channels": some} for some in ((8, 32, 24, 40), (16, 16, 24, 32))]
    found = merger([load_source(tiny("resnet18", seed, **args), args) for seed, args in enumerate(sizes)])
    for cut in (None, "layer2"):
        merged = found.merge(method=method, cut=cut, calibrate="none")
        assert len(merged.trunk.get_submodule("layer1.1.conv2").weight) == 16
        assert len(merged.trunk.get_submodule("layer2.0.conv2").weight) == 32
        plan = found.plan(found.recipe.changed(method=method, cut=cut))
        assert found.parents.cost(found.tasks, plan) == cost_of(merged, found.parents.input_size)


def test_a_space_of_one_binding_is_known_in_every_model():
    sources = [load_source(tiny("cifar_resnet20", seed, width=width)) for seed, width in ((0, 1), (1, 2))]
    for order in (sources, sources[::-1]):
        parents = open_parents(order)
        assert parents.reference is sources[1]
        assert parents.binding.unequal == list(parents.binding.spaces)
        for number, source in enumerate(order):
            assert parents.binding.of(number).spaces == find_spec(source).spaces
            assert parents.binding.of(number).table == find_spec(source).table


def test_every_unit_of_a_narrow_model_joins_another_one_of_the_wide():
    scores = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    table = torch.eye(8)
    table[:3, 3:], table[3:, :3] = scores, scores.T
    match = permute_match(table, [3, 5])
    rows, columns = linear_sum_assignment(scores.numpy(), maximize=True)
    assert match.width == 5
    assert sorted(match.of(1).tolist()) == [0, 1, 2, 3, 4]
    assert match.of(0)[rows].tolist() == match.of(1)[columns].tolist()
    assert permute_match(table[[*range(3, 8), 0, 1, 2]][:, [*range(3, 8), 0, 1, 2]], [5, 3]).width == 5


@pytest.mark.parametrize("cut", [None, "layer2"])
def test_a_dry_run_states_the_cost_of_the_merge(cut, folders, of_digits):
    plan = plan_merge(Recipe(sources=folders, method="zip", cut=cut, data=["images"]))
    merged = of_digits.merge(method="zip", cut=cut, calibrate="none")
    assert plan.flops == count_flops(merged, (3, 32, 32))
    assert plan.parameters == sum(parameter.numel() for parameter in merged.parameters())
    assert plan.spaces == {space["name"]: space["width"] for space in merged.config.zipit["spaces"]}
    assert plan.memory["statistics"] == 8 * sum((width + width // 2) ** 2 for width in plan.spaces.values())


@pytest.mark.parametrize(("cut", "turned"), [("layer2", False), slow("layer2", True), slow(None, False)])
def test_a_saved_merge_loads_in_a_new_process_without_hf_zipit(cut, turned, folders, digits_data, tmp_path):
    models = folders[:: -1 if turned else 1]
    merged = hf_zipit.merge(models, digits_data, cut=cut, num_images=60, tasks=["a", "b"], cache=False)
    assert merged.config.backbone["model_args"]["width"] == 2
    folder = save(merged, tmp_path / "merged")
    hide = "sys.modules['hf_zipit'] = None; torch.set_num_threads(1)"
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    found = read_in_new_process(folder, tmp_path, hide, ", trust_remote_code=True", env)
    with torch.no_grad():
        expected = merged(READ_PIXELS).task_logits
    assert all(torch.equal(found[task], expected[task]) for task in expected)


def test_evaluations_and_inspections_know_both_widths(folders, digits_data, of_digits):
    merged = of_digits.merge(method="zip", cut="layer2", calibrate="none")
    found = {row.model: row for row in hf_zipit.evaluate(merged, digits_data, parents=folders, num_images=40)}
    assert found["merged"].parameters == sum(parameter.numel() for parameter in merged.parameters())
    assert found["parent:b"].parameters > 3 * found["parent:a"].parameters
    heads = [head["parameters"] for head in merge_inspection(merged)["heads"]]
    assert 3 < heads[1] / heads[0] < 4.5


def test_a_full_merge_is_an_ordinary_model_of_the_widest(of_digits):
    merged = of_digits.merge(method="zip", calibrate="none")
    wide = build_backbone(merged.config.backbone, 10)
    state = {name.removeprefix("trunk."): value for name, value in merged.state_dict().items() if name[:5] == "trunk"}
    heads = [head.state_dict() for head in merged.heads]
    state |= {name: torch.cat([head[name] for head in heads]) for name in heads[0]}
    wide.load_state_dict(state)
    with torch.no_grad():
        found = wide(PIXELS).split(5, 1)
    for mine, own in zip(found, answers(merged).values(), strict=True):
        torch.testing.assert_close(mine, own)


@pytest.mark.slow
def test_a_verdict_and_a_diagnosis_name_cuts_and_widths(folders, digits_data):
    found = diagnose(folders, digits_data, num_images=100, cache=False, calibrate="batchnorm")
    assert found.trials[0].flops == pytest.approx(1, abs=0.01)
    assert all(trial.flops < 1.3 for trial in found.trials if trial.cut)  # all models together: 1.25
    assert set(found.survival["1"]["layer1"]) != {None}
    assert found.relation.startswith("the models have initialisations of their own")

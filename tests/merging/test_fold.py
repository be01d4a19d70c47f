"""One model made smaller: what it computes, what it costs, what is kept, and what is refused."""

import os
import subprocess
import sys

import pytest
import timm
import torch
from transformers import AutoModelForImageClassification

import hf_zipit
from hf_zipit.calibration.batchnorm import renew_norms
from hf_zipit.costs import cost_of
from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_all
from hf_zipit.errors import OptionError, OutputError
from hf_zipit.find_spec import find_spec
from hf_zipit.merging import kept
from hf_zipit.merging.merger import Merger
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from tests.helpers.models import cifar_vgg, hf_vit, images, shuffled, timm_vit, tiny
from tests.helpers.wholes import PAIRS, small

(PIXELS,) = images(4, seed=7)
UNSEEN = ("weight-zip", "weight-kmeans")
WAYS = [(method, "none") for method in ("select", "zip", "kmeans", *UNSEEN)]
WAYS += [("select", "refit"), ("weight-kmeans", "repair-weights"), ("auto", "auto")]


@torch.no_grad()
def logits(model):
    return logits_of(model(PIXELS))


def doubled(model, wide):
    """A model with every unit of those spaces twice that are wider in `wide`, and readers halved: the same function."""
    binding = find_spec(load_source(model))
    spaces, wider = binding.spaces, find_spec(load_source(wide)).spaces
    out = {}
    for name, rows in binding.rows(model.state_dict()).items():
        value = model.state_dict()[name].clone()
        for row in rows:
            if wider[row.space].size == 2 * spaces[row.space].size:
                assert row.length == value.shape[row.axis] == spaces[row.space].size * row.after
                value = value.unflatten(row.axis, (-1, row.after)).repeat_interleave(2, row.axis)
                value = value.flatten(row.axis, row.axis + 1) / (2 if row.role == "read" else 1)
        out[name] = value
    wide.load_state_dict(out)
    return wide


def double_resnet():
    small = tiny("cifar_resnet20")
    return small, shuffled(doubled(small, timm.create_model("cifar_resnet20", depth=8, num_classes=5, width=2).eval()))


def double_vit():
    small = hf_vit()
    return small, shuffled(doubled(small, hf_vit(1, intermediate_size=96)))


@pytest.mark.parametrize("pair", [double_resnet, double_vit])
@pytest.mark.parametrize(("method", "calibrate"), WAYS)
@pytest.mark.sample(8)
def test_a_model_whose_units_are_all_there_twice_gets_its_function_back(pair, method, calibrate):
    small, wide = pair()
    torch.testing.assert_close(logits(wide), logits(small), rtol=1e-4, atol=1e-4)
    data = None if method in (*UNSEEN, "auto") else images(64)
    options = {"method": method, "calibrate": calibrate, "heads": "pair"}
    found = hf_zipit.fold(wide, data, width=0.5, cache=False, verdict=False, **options)
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in small.parameters())
    answers = [logits(model).log_softmax(1) for model in (found, small)]  # a refit centres logits
    torch.testing.assert_close(*answers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [lambda: tiny("cifar_resnet20"), hf_vit, timm_vit, cifar_vgg])
def test_at_width_1_nothing_changes(make):
    model = make()
    merger = Merger([model], images(32), cache=False)
    for method, calibrate in (("select", "none"), ("zip", "none"), ("weight-kmeans", "repair-weights")):
        found = merger.merge(method=method, calibrate=calibrate)
        torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-5)


def test_a_budget_is_met_and_the_model_is_not_changed():
    model = tiny("cifar_resnet20")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = hf_zipit.fold(model, images(128), flops_budget=0.5, cache=False)
    share = cost_of(found, (3, 32, 32)).flops / cost_of(model, (3, 32, 32)).flops
    assert 0.45 < share <= 0.5
    assert found.config.cut is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    verdict = found.config.zipit["verdict"]
    assert verdict["images"] == 25
    assert verdict["control"] is None
    assert verdict["tasks"]["cifar_resnet20"]["control"] is None


def test_the_spaces_that_cannot_shrink_are_named():
    found = hf_zipit.fold(hf_vit(), width=0.5).config.zipit
    assert {reason: len(names) for reason, names in found["kept"].items()} == {kept.NORMED: 1, kept.HEADS: 6}
    widths = {space["name"]: space["width"] for space in found["spaces"]}
    assert sorted(widths.values()) == [24] * 10
    found = hf_zipit.fold(hf_vit(), images(16), width=0.5, method="select", calibrate="none", verdict=False).config
    assert list(found.zipit["kept"]) == [kept.NORMED]
    assert {values["head_dim"] for values in found.attributes.values()} == {3}
    assert hf_zipit.fold(tiny("cifar_resnet20"), width=0.5).config.zipit["kept"] == {}


def test_a_traced_model_is_folded():
    model = timm.create_model("regnetx_002", num_classes=5).eval()
    found = hf_zipit.fold(model, width=0.5)
    assert found.spec_text.startswith("family: traced-regnet")
    assert cost_of(found, (3, 224, 224)).flops < 0.6 * cost_of(model, (3, 224, 224)).flops


def test_spaces_that_the_modules_do_not_let_shrink_are_kept():
    source = small(*PAIRS["SegFormer"][1:], 1, 32)
    found = hf_zipit.fold(source, images(16), width=0.5, method="select", calibrate="none", verdict=False)
    assert len(found.config.zipit["kept"][kept.FIXED]) == 1  # the values of an attention layer of one head
    assert sum(p.numel() for p in found.parameters()) < 0.8 * sum(p.numel() for p in source.model.parameters())


def test_a_merge_is_folded_with_all_of_its_tasks():
    merged = hf_zipit.merge([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(32), tasks=["a", "b"], width=1.5)
    found = hf_zipit.fold(merged, images(128), width=0.5)
    assert found.config.tasks == ["a", "b"]
    assert set(found.config.zipit["verdict"]["tasks"]) == {"a", "b"}
    assert sum(p.numel() for p in found.parameters()) < 0.4 * sum(p.numel() for p in merged.parameters())
    again = hf_zipit.merge([found, found], images(32), tasks=["a", "b", "c", "d"], method="average", calibrate="none")
    for number, task in enumerate(again(PIXELS).task_logits.values()):
        torch.testing.assert_close(task, found(PIXELS).task_logits["ab"[number % 2]], rtol=1e-4, atol=1e-5)


READ = """
import sys, torch
sys.modules["hf_zipit"] = None  # never heard of it
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(pixel_values=torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def test_a_saved_fold_loads_without_hf_zipit(tmp_path):
    torch.set_num_threads(1)
    found = hf_zipit.fold(tiny("cifar_resnet20"), width=0.5)
    folder = saving.save(found, tmp_path / "small")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    command = [sys.executable, "-c", READ, str(folder), str(tmp_path / "pixels.pt"), str(tmp_path / "out.pt")]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=env)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), logits(found), rtol=1e-6, atol=1e-6)
    assert torch.equal(logits(load_merged(folder)), logits(found))
    text = (folder / "README.md").read_text()
    assert "# A smaller cifar_resnet20" in text
    assert "merge" not in text.partition("---\n")[2].partition("---\n")[0]  # the metadata


@pytest.mark.parametrize("heads", ["pair", "all"])
def test_a_vit_of_transformers_becomes_an_ordinary_checkpoint(heads, tmp_path):
    model = hf_vit()
    found = hf_zipit.fold(model, images(16), width=0.5, method="select", calibrate="none", heads=heads, verdict=False)
    folder = saving.save(found, tmp_path / "plain", library="transformers")
    again = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(again) is type(model)
    assert again.config.intermediate_size == 24
    assert again.num_parameters() == sum(p.numel() for p in found.parameters()) < 0.85 * model.num_parameters()
    torch.testing.assert_close(logits(again), logits(found), rtol=1e-5, atol=1e-5)


def test_a_vit_of_timm_becomes_an_ordinary_checkpoint_and_a_resnet_does_not(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 28, "num_heads": 4, "depth": 3}
    source = load_source(timm_vit(embed_dim=28), model_args=args)
    found = hf_zipit.fold(source, width=0.4)  # an MLP of 45 units, 1.607... times the stream
    folder = saving.save(found, tmp_path / "plain", library="timm")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert again.blocks[0].mlp.fc1.out_features == 45
    torch.testing.assert_close(logits(again), logits(found), rtol=1e-5, atol=1e-5)
    with pytest.raises(OutputError, match=r"no ordinary timm model has these widths: \S+ is \[\d+"):
        saving.save(hf_zipit.fold(tiny("resnet18"), width=0.5), tmp_path / "other", library="timm")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give a width below 1, or a flops_budget below 1"),
        ({"width": 1.0}, "give a width below 1"),
        ({"width": 1.5}, "width is 1.5: a fold makes a model smaller, so it must be below 1"),
        ({"flops_budget": 1.0}, "flops_budget is 1: a fold makes a model smaller"),
        ({"width": 0.0}, "width is 0"),
        ({"width": 1e-6}, "width is 1e-06: not one of the 64 units of the largest feature space is left"),
        ({"width": 50}, "width is 50: a fold makes a model smaller, so it must be below 1"),
        ({"width": 0.995}, "width is 0.995: no feature space of this model becomes smaller"),
        ({"width": 0.5, "method": "permute"}, "method 'permute' supports no width below 1"),
        ({"width": 0.5, "method": "first-parent"}, "only width 1"),
        ({"width": 0.5, "calibrate": "refit-joint"}, "for the tasks of several models: use refit"),
        ({"width": 0.5, "tasks": ["a", "b"]}, "1 different names are needed"),
        ({"flops_budget": 0.01}, "these models need at least"),
    ],
)
def test_what_is_no_fold_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        hf_zipit.fold(tiny("cifar_resnet20"), images(32), **options)


def test_other_mistakes_are_named():
    model = tiny("cifar_resnet20")
    with pytest.raises(OptionError, match="2 models given: a fold takes one"):
        hf_zipit.fold([model, model], width=0.5)
    with pytest.raises(TypeError, match=r"fold\(\) got an unexpected keyword argument 'base'"):
        hf_zipit.fold(model, width=0.5, base="x")
    with pytest.raises(OptionError, match="1 model given: a merge needs two or more"):
        hf_zipit.merge([model], images(32))
    with pytest.raises(OptionError, match="no data: this needs images"):
        hf_zipit.fold(model, width=0.5, method="zip")
    with pytest.raises(OptionError, match="0 data sets for 1 model: "):
        hf_zipit.fold(model, [], width=0.5)
    with pytest.raises(OptionError, match="no data"):
        hf_zipit.fold(model, flops_budget=0.5)


def variances(model, module):
    """The variance of every output of a layer of a model on white noise."""
    seen = []
    handle = module.register_forward_hook(lambda _, __, out: seen.append(out.movedim(1, -1).clone()))
    with torch.no_grad():
        for pixels in images(64, seed=1):
            model(pixels)
    handle.remove()
    return torch.cat([out.flatten(0, -2) for out in seen]).var(0)


def test_without_images_norms_have_the_variance_of_what_they_read():
    """On white noise the assumption holds: the inputs of the first layer are uncorrelated and vary alike."""
    model = tiny("cifar_resnet20", width=2)
    assert renew_norms(model, Passes(open_all(images(64, seed=1), 1, None), 32, "cpu"))
    ways = ("none", "repair-weights")
    plain, repaired = (hf_zipit.fold(model, width=0.5, method="weight-zip", calibrate=way) for way in ways)
    actual = variances(repaired, repaired.trunk.conv1)
    torch.testing.assert_close(repaired.trunk.bn1.running_var, actual, rtol=0.05, atol=0)
    assert ((plain.trunk.bn1.running_var / actual) > 1.2).sum() > 4
    assert torch.equal(plain.trunk.conv1.weight, repaired.trunk.conv1.weight)


def test_without_images_and_norms_units_vary_as_their_members_do():
    model = cifar_vgg()
    ways = ("none", "repair-weights")
    plain, repaired = (hf_zipit.fold(model, width=0.5, method="weight-zip", calibrate=way) for way in ways)
    merger = Merger([model], cache=False)
    recipe = merger.recipe.changed(width=0.5, method="weight-zip")
    labels = merger.match(merger.plan(recipe), recipe)["features.0.out"].labels
    before = variances(model, model.features[0])
    after = variances(repaired, repaired.trunk.features[0])
    expected = torch.stack([before[labels == unit].mean() for unit in range(len(after))])
    torch.testing.assert_close(after, expected, rtol=0.05, atol=0)
    assert (variances(plain, plain.trunk.features[0]) < 0.8 * expected).sum() > 1


def test_members_of_one_norm_are_scaled_as_by_model_folding():
    """Fold-AR scales the mean of n units, of mean correlation e, by n / sqrt(n + (n^2 - n) e)."""
    model = cifar_vgg()
    first = model.features[0].weight
    with torch.no_grad():
        first.div_(first.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    ways = ("none", "repair-weights")
    plain, repaired = (hf_zipit.fold(model, width=0.5, method="weight-zip", calibrate=way) for way in ways)
    merger = Merger([model], cache=False)
    recipe = merger.recipe.changed(width=0.5, method="weight-zip")
    labels = merger.match(merger.plan(recipe), recipe)["features.0.out"].labels
    factors = []
    for unit in range(int(labels.max()) + 1):
        rows = first.detach().flatten(1)[labels == unit]
        n = len(rows)
        between = (rows @ rows.T).sum() - n
        e = between / max(n * n - n, 1)
        factors.append(n / (n + (n * n - n) * e).sqrt())
    before, after = (x.trunk.features[0].weight.flatten(1).norm(dim=1) for x in (plain, repaired))
    assert max(factors) > 1.2
    torch.testing.assert_close(after / before, torch.stack(factors), rtol=1e-4, atol=0)

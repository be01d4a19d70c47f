"""Merges of models of one base by their differences to it."""

import copy

import pytest
import torch
import transformers

import hf_zipit
from hf_zipit.comparison.run import Comparison
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.evaluation.agreement import compare_answers
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging import scale
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import PinnedSource, Recipe, read_recipe
from hf_zipit.saving import save as saving
from hf_zipit.sources.load import load_source
from tests.helpers.models import hf_vit, images, tiny

BASED = [name for name, method in METHODS.items() if method.based]
VIT = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def tuned(base, seed, size=0.02):
    """A fine-tune: the base with small changes, and a classifier of its own."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            far = 1.0 if name.startswith(("classifier", "fc")) else size
            value += far * torch.randn(value.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def vits():
    base = hf_vit(0)
    return base, [tuned(base, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope="module")
def resnets():
    base = tiny("cifar_resnet20", 0)
    return base, [tuned(base, seed) for seed in (1, 2)]


def trunk(merged):
    state = merged.state_dict()
    return {n.removeprefix("trunk."): v for n, v in state.items() if n.startswith("trunk.") and "classifier" not in n}


@pytest.mark.parametrize("method", BASED)
def test_every_method_makes_a_merge_at_a_given_scale(method, vits):
    base, models = vits
    merged = hf_zipit.merge(models, base=base, method=method, scale=0.5, calibrate="none")
    recorded = merged.config.zipit["recipe"]
    assert (recorded["method"], recorded["scale"]) == (method, 0.5)
    changed = [name for name, value in trunk(merged).items() if not torch.equal(value, base.state_dict()[name])]
    assert len(changed) > 30
    assert all(value.isfinite().all() for value in merged.state_dict().values())


def test_the_scale_is_the_one_whose_merge_answers_most_like_the_models(resnets, monkeypatch):
    base, models = resnets
    monkeypatch.setattr(scale, "SCALES", (0.1, 0.5, 1.0, 2.0))
    monkeypatch.setattr(scale, "TOGETHER", 3)
    merger = Merger(models, images(100), base=base, cache=False)
    chosen = merger.merge(method="task-arithmetic", calibrate="none").config.zipit["recipe"]["scale"]
    assert merger.held_out is not None
    made = {s: merger.merge(method="task-arithmetic", calibrate="batchnorm", scale=s) for s in scale.SCALES}
    kept = {}
    for value, one in made.items():
        found = compare_answers({"one": one}, merger.parents.wholes, merger.held_out)
        kept[value] = float(found.kept("one", [None, None])[found.images > 0].mean())
    assert kept[chosen] == max(kept.values()) > min(kept.values())


def test_task_arithmetic_adds_the_differences(vits):
    base, models = vits
    merged = hf_zipit.merge(models, base=base, method="task-arithmetic", scale=0.7, calibrate="none")
    states = [model.state_dict() for model in models]
    for name, value in trunk(merged).items():
        start = base.state_dict()[name]
        wanted = start + 0.7 * sum(state[name] - start for state in states)
        torch.testing.assert_close(value, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_without_images_the_scale_is_that_of_the_average(vits):
    base, models = vits
    merged = hf_zipit.merge(models, base=base, method="task-arithmetic", calibrate="none")
    plain = hf_zipit.merge(models, method="average", calibrate="none")
    assert merged.config.zipit["recipe"]["scale"] == pytest.approx(1 / 3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], value)


def test_models_equal_to_the_base_but_for_their_classifiers_leave_it_as_it_is(resnets):
    base, _ = resnets
    models = [tuned(base, seed, 0) for seed in (1, 2)]
    for method in BASED:
        merged = hf_zipit.merge(models, base=base, method=method, scale=1.0, calibrate="none")
        for name, value in trunk(merged).items():
            if not name.startswith("fc"):
                torch.testing.assert_close(value, base.state_dict()[name])


def test_the_classifier_of_the_base_does_not_matter(vits):
    base, models = vits
    options = {"method": "tsv", "scale": 1.0, "calibrate": "none"}
    one = hf_zipit.merge(models, base=base, **options).state_dict()
    headless = transformers.ViTModel(
        transformers.ViTConfig(**VIT, image_size=32, patch_size=8), add_pooling_layer=False
    )
    own = headless.state_dict()
    headless.load_state_dict({name: base.state_dict()[f"vit.{name}"] for name in own})
    two = hf_zipit.merge(models, base=headless, **options).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_cut_leaves_the_layers_behind_it_as_they_are(resnets):
    base, models = resnets
    merged = hf_zipit.merge(models, base=base, method="ties", scale=1.0, cut="layer2", calibrate="none")
    plain = hf_zipit.merge(models, method="average", cut="layer2", calibrate="none")
    assert merged.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        if name.startswith("heads."):
            assert torch.equal(merged.state_dict()[name], value)
    assert not torch.equal(merged.state_dict()["trunk.conv1.weight"], plain.state_dict()["trunk.conv1.weight"])


@pytest.mark.parametrize("method", ["regmean", "regmean-sequential"])
def test_regmean_needs_no_base(method, resnets):
    _, models = resnets
    data = [images(60), images(60, seed=1)]
    merged = hf_zipit.merge(models, data, method=method, calibrate="none", cache=False)
    plain = hf_zipit.merge(models, method="average", calibrate="none")
    pixels = images(32, seed=2)[0]
    assert merged.config.zipit["recipe"]["method"] == method
    with torch.no_grad():
        wanted = torch.cat([model(pixels) for model in models], 1)
        errors = [float((one(pixels).logits - wanted).square().mean()) for one in (merged, plain)]
    assert 0 < errors[0] < 3 * errors[1]


def test_half_precision_is_kept(vits):
    base, models = vits
    halves = [copy.deepcopy(model).half() for model in models]
    merged = hf_zipit.merge(halves, base=base, method="wudi", scale=1.0, calibrate="none")
    full = hf_zipit.merge(
        [copy.deepcopy(h).float() for h in halves], base=base, method="wudi", scale=1.0, calibrate="none"
    )
    for name, value in merged.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float16
            torch.testing.assert_close(value, full.state_dict()[name].half())


def test_a_plan_asks_for_a_base_too(digits):
    refs = [str(folder) for folder in digits]
    with pytest.raises(OptionError, match="give --base"):
        plan_merge(Recipe(sources=refs, method="tsv"))
    assert plan_merge(Recipe(sources=refs, method="tsv", base=refs[0])).flops


def test_a_base_is_asked_for(vits):
    with pytest.raises(OptionError, match="give --base"):
        hf_zipit.merge(vits[1], method="tsv", calibrate="none")


def test_another_architecture_is_no_base(vits, resnets):
    with pytest.raises(
        SourceError, match=r"is not the base of these models: they have .* with shape .*, and it has no such"
    ):
        hf_zipit.merge(vits[1], base=resnets[0], method="tsv", calibrate="none")
    wide = hf_vit(0, hidden_size=48)
    with pytest.raises(SourceError, match=r"with shape \(1, 1, 24\), and it has \(1, 1, 48\)"):
        hf_zipit.merge(vits[1], base=wide, method="tsv", calibrate="none")


def test_embeddings_of_positions_that_the_fine_tuning_resized_are_averaged_and_named(vits, caplog):
    _, models = vits
    larger = hf_vit(0, image_size=64)
    with caplog.at_level("WARNING", "hf_zipit"):
        merged = hf_zipit.merge(models, base=larger, method="task-arithmetic", scale=1.0, calibrate="none")
    assert "vit.embeddings.position_embeddings" in caplog.text
    name = "vit.embeddings.position_embeddings"
    mean = sum(model.state_dict()[name] for model in models) / 3
    torch.testing.assert_close(merged.state_dict()[f"trunk.{name}"], mean)


def test_one_merger_serves_all_methods(resnets):
    base, models = resnets
    merger = Merger(models, images(60), base=base, cache=False)
    weights = {m: merger.merge(method=m, calibrate="none", scale=0.5).state_dict() for m in ("tsv", "iso-c", "average")}
    first = [state["trunk.conv1.weight"] for state in weights.values()]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_a_recorded_merge_is_made_again(digits, tmp_path):
    folders = [str(folder) for folder in digits]
    merged = hf_zipit.merge(folders, base=folders[0], method="dare", scale=0.5, density=0.5, seed=4, calibrate="none")
    folder = saving.save(merged, tmp_path / "merged")
    recipe = read_recipe(folder / "zipit_config.yml")
    assert recipe.base is not None
    assert "scale of the differences: `0.5`" in (folder / "README.md").read_text()
    assert isinstance(recipe.base, PinnedSource)
    with pytest.raises(SourceError, match="is not the model that the recipe was written for"):
        hf_zipit.merge_recipe(recipe, base=PinnedSource(path=folders[1], sha256=recipe.base.sha256))
    again = hf_zipit.merge_recipe(recipe)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in merged.state_dict().items())
    card = (folder / "README.md").read_text()
    assert "fine-tuned from: `digits-0-4`" in card
    assert "hf-zipit merge zipit_config.yml digits-0-4 digits-5-9 --base digits-0-4 -o again" in card
    assert "path:" not in card  # which shows no path of this machine


def test_a_base_with_more_layers_is_refused(vits):
    deeper = hf_vit(0, num_hidden_layers=4)
    with pytest.raises(
        SourceError, match=r"is not the base of these models: it has vit.layers.3\..*, and they have not"
    ):
        hf_zipit.merge(vits[1], base=deeper, method="tsv", calibrate="none")


def test_doubts_about_a_base_are_said(vits, caplog):
    base, models = vits
    options = {"method": "task-arithmetic", "scale": 0.3, "calibrate": "none"}
    with caplog.at_level("WARNING", "hf_zipit"):
        hf_zipit.merge(models, base=base, **options)
    assert not caplog.records
    with caplog.at_level("WARNING", "hf_zipit"):
        hf_zipit.merge(models, base=hf_vit(7), **options)
        hf_zipit.merge(models, base=copy.deepcopy(base).bfloat16(), **options)
        hf_zipit.merge(models, base=base, method="average", calibrate="none")
    assert "may not be the base (--base): every model differs from it at least" in caplog.text
    assert "is rounded to torch.bfloat16" in caplog.text
    assert "base is not used, as average adds no differences to it" in caplog.text


def test_a_plan_looks_at_the_base(digits):
    refs = [str(folder) for folder in digits]
    with pytest.raises(SourceError, match="no model at"):
        plan_merge(Recipe(sources=refs, method="tsv", base="/nowhere/base"))
    assert "tsv with none" in str(plan_merge(Recipe(sources=refs, base=refs[0])).note)


def test_a_comparison_keeps_the_rows_of_each_base_apart(resnets, tmp_path):
    base, models = resnets
    for method in ("tsv", "auto"):
        recipe = Recipe(method=method, scale=1.0, calibrate="none")
        keys = set()
        for one in (base, models[0], base):
            merger = Merger(models, images(60), base=one, cache=False)
            comparison = Comparison(merger, tmp_path / "out")
            keys.add(comparison._key(comparison._decisions(recipe)))
        assert len(keys) == 2


def test_the_draw_of_dare_is_that_of_the_run(vits):
    base, models = vits
    merger = Merger(models, base=base, seed=5)
    made = merger.merge(Recipe(method="dare", scale=1.0, calibrate="none"))
    assert made.config.zipit["recipe"]["seed"] == 5
    again = hf_zipit.merge(models, base=base, method="dare", scale=1.0, calibrate="none", seed=5)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in made.state_dict().items())


def test_a_base_in_memory_is_said_to_be_one(digits, tmp_path):
    folders = [str(folder) for folder in digits]
    base = load_source(folders[0]).model
    merged = hf_zipit.merge(folders, base=base, method="ties", calibrate="none")
    folder = saving.save(merged, tmp_path / "merged")
    assert "fine-tuned from: `a model in memory`" in (folder / "README.md").read_text()
    with pytest.raises(OptionError, match=r"the base of the recipe was a model in memory; give --base \(base\)"):
        hf_zipit.merge_recipe(folder / "zipit_config.yml")


def test_what_the_user_allows_holds_for_the_base_too(vits, tmp_path):
    base, models = vits
    base.save_pretrained(tmp_path)
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    options = {"base": tmp_path, "method": "ties", "scale": 1.0, "calibrate": "none"}
    with pytest.raises(SourceError, match="allow_pickle=True"):
        hf_zipit.merge(models, **options)
    allowed = hf_zipit.merge(models, **options, allow_pickle=True).state_dict()
    plain = hf_zipit.merge(models, **{**options, "base": base}).state_dict()
    assert all(torch.equal(allowed[name], value) for name, value in plain.items())

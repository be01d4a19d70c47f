"""A dry run tells what the merge then costs, without weights and without writing."""

import json

import pytest
import torch

import hf_zipit
from hf_zipit.assembly.classifier import Classifiers
from hf_zipit.assembly.kinds import open_parents
from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.calibration.refit import refit as module
from hf_zipit.costs import count_flops
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging import dry_run
from hf_zipit.merging.dry_run import plan_merge, plan_text
from hf_zipit.recipe import Recipe
from hf_zipit.saving import save as saving
from hf_zipit.sources.load import load_source
from hf_zipit.text import si
from tests.helpers.families import timm_convnext
from tests.helpers.marks import slow, slow_but
from tests.helpers.measure import PeakMemory
from tests.helpers.models import hf_vit, images
from tests.helpers.wholes import PAIRS, small


@pytest.mark.parametrize("cut", [None, "layer2"])
def test_the_plan_is_what_the_merge_costs(digits, cut):
    plan = plan_merge(Recipe(sources=[str(d) for d in digits], method="average", cut=cut))
    merged = hf_zipit.merge(digits, method="average", calibrate="none", cut=cut)
    assert plan.parameters == sum(p.numel() for p in merged.parameters())
    assert plan.flops == count_flops(merged, (3, 32, 32))
    about = {space["name"]: space["width"] for space in merged.config.zipit["spaces"]}
    assert plan.spaces == about
    assert plan.memory["statistics"] == 0
    assert plan.parents_flops < 2.01 * plan.flops
    assert list(plan.models) == ["digits-0-4", "digits-5-9"]
    assert len(plan.cuts) == 8
    assert plan.cuts["layer2.0"] == "layer2"


def test_statistics_are_counted_by_space(digits):
    recipe = Recipe(sources=[str(d) for d in digits], data=["a", "b"])
    plan = plan_merge(recipe)
    assert plan.memory["statistics"] == 8 * sum((2 * n) ** 2 for n in plan.spaces.values())  # one strip each
    assert "to download: nothing" in plan_text(plan)


WIDE = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2}


@pytest.mark.parametrize(("kind", "count"), [("vit", 24), slow("vit", 192), slow("resnet", 64)])
def test_the_memory_of_a_refit_is_what_it_takes(kind, count, tmp_path, digits, monkeypatch):
    models = refs = [str(folder) for folder in digits]
    if kind == "vit":
        models, refs = [hf_vit(seed, **WIDE) for seed in (0, 1)], [str(tmp_path / name) for name in "ab"]
        for model, ref in zip(models, refs, strict=True):
            model.save_pretrained(ref)
    options = {"calibrate": "refit", "method": "average", "batch_size": 4, "num_images": count, "cache": False}
    plan = plan_merge(Recipe(sources=refs, **options))
    seen, refit = PeakMemory(), module.refit

    def measured(merge):
        with seen:
            refit(merge)

    monkeypatch.setattr(module, "refit", measured)
    hf_zipit.merge(models, images(count), **options)
    stated = plan.memory["refit"] + plan.memory["parents"] / 2  # of the parents' copies
    assert stated / 2 < seen.peak < 1.5 * stated


def test_the_memory_of_a_refit_is_stated_where_there_is_one(digits):
    refs = [str(folder) for folder in digits]
    assert "refit" not in plan_merge(Recipe(sources=refs, calibrate="batchnorm")).memory
    few, many, unknown = (
        plan_merge(Recipe(sources=refs, calibrate="refit", num_images=count)) for count in (10, 500, None)
    )
    assert few.memory["refit"] < many.memory["refit"] < unknown.memory["refit"]
    assert f"refit {si(many.memory['refit'], 'B')}" in plan_text(many)


@pytest.mark.parametrize("calibrate", CALIBRATIONS)
def test_the_memory_is_stated_for_all_calibrations_that_refit(digits, calibrate):
    plan = plan_merge(Recipe(sources=[str(folder) for folder in digits], calibrate=calibrate))
    assert ("refit" in plan.memory) == calibrate.startswith("refit")


def test_transformers_models_are_planned_too(tmp_path):
    for seed, name in enumerate("ab"):
        hf_vit(seed).save_pretrained(tmp_path / name)
    plan = plan_merge(Recipe(sources=[str(tmp_path / "a"), str(tmp_path / "b")]))
    assert plan.spec == "hf-vit"
    assert plan.parameters < plan.parents_parameters


def test_weights_on_the_hub_are_counted_and_not_fetched(hub, digits):
    for name, folder in zip("ab", digits, strict=True):
        hub.add(f"user/{name}", folder)
    plan = plan_merge(Recipe(sources=["user/a", "user/b"]))
    sizes = {f"user/{n}": (d / "model.safetensors").stat().st_size for n, d in zip("ab", digits, strict=True)}
    assert plan.download == sizes
    assert not [path for method, path in hub.log if method == "GET" and path.endswith("model.safetensors")]
    hf_zipit.load_source("user/a")
    assert plan_merge(Recipe(sources=["user/a", "user/b"])).download == {**sizes, "user/a": 0}


def test_what_the_merge_would_refuse_is_refused(digits, tmp_path):
    refs = [str(d) for d in digits]
    with pytest.raises(OptionError, match="unknown cut 'layer9'"):
        plan_merge(Recipe(sources=refs, cut="layer9"))
    with pytest.raises(OptionError, match="unknown method 'magic'"):
        plan_merge(Recipe(sources=refs, method="magic"))
    with pytest.raises(OptionError, match="needs two or more"):
        plan_merge(Recipe(sources=refs[:1]))
    with pytest.raises(SourceError, match="neither a folder nor a Hub id"):
        plan_merge(Recipe(sources=[*refs, "nowhere"]))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "model_args": {"wings": "x"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="describes no model that can be built"):
        plan_merge(Recipe(sources=[refs[0], str(tmp_path)]))


@pytest.mark.parametrize("name", slow_but(("masked images",), PAIRS))
def test_the_parameters_of_a_merge_of_several_kinds_are_those_it_has(name):
    """Models may hold tensors in the shared steps that others lack, such as the mask token of a masked-image model."""
    first, second = PAIRS[name]
    sources = [small(first, 0, 64 if name in ("UperNet", "smp Unet") else None), small(second, 1)]
    parents = open_parents(sources)
    for cut in (parents.binding.cuts[0], None):
        merged = hf_zipit.merge(sources, method="average", calibrate="none", cut=cut, tasks=["a", "b"])
        planned = parents.cost(["a", "b"], parents.plan(cut))
        assert planned.parameters == sum(parameter.numel() for parameter in merged.parameters())
        assert planned.flops == count_flops(merged, parents.input_size)


def test_the_cost_of_models_in_memory_is_theirs_and_not_that_of_the_architecture_they_name(tmp_path):
    sources = [load_source(timm_convnext(seed)) for seed in (0, 1)]
    parents = open_parents(sources)
    merged = hf_zipit.merge(sources, method="average", calibrate="none", tasks=["a", "b"])
    planned = parents.cost(["a", "b"], parents.plan(None))
    assert planned.flops == count_flops(merged, parents.input_size)
    assert planned.parameters == sum(parameter.numel() for parameter in merged.parameters())
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path)
    pixels = torch.randn(2, *parents.input_size)
    torch.testing.assert_close(again(pixels).logits, merged(pixels).logits)


def test_a_plan_says_what_it_takes_for_granted(digits):
    refs = [str(digit) for digit in digits]
    assert "this is for average with none" in plan_text(plan_merge(Recipe(sources=refs)))
    assert plan_merge(Recipe(sources=refs, method="zip", calibrate="refit", data=["x"])).note is None


def test_a_merge_among_the_models_is_planned_too(digits, tmp_path):
    first = saving.save(hf_zipit.merge(digits, method="average", calibrate="none"), tmp_path / "first")
    plan = plan_merge(Recipe(sources=[str(first), str(digits[0])], method="average"))
    merged = hf_zipit.merge([first, digits[0]], method="average", calibrate="none")
    assert list(plan.models) == ["digits-0-4-1, digits-5-9", "digits-0-4-2"]
    assert plan.parameters == sum(parameter.numel() for parameter in merged.parameters())


def test_models_that_cannot_be_merged_are_opened_once(digits, monkeypatch):
    built = []
    plain = dry_run.outline
    monkeypatch.setattr(dry_run, "outline", lambda *args: built.append(args) or plain(*args))

    def refused(*_):
        raise SourceError("they differ")

    monkeypatch.setattr(Classifiers, "open", refused)
    with pytest.raises(SourceError, match="they differ"):
        plan_merge(Recipe(sources=[str(d) for d in digits]))
    assert len(built) == 2


@pytest.mark.parametrize(("width", "cut"), [(1.5, "layer2"), (0.5, None)])
@pytest.mark.sample(1)
def test_widths_are_counted_and_a_budget_is_a_bound(digits, width, cut):
    refs = [str(d) for d in digits]
    plan = plan_merge(Recipe(sources=refs, method="weight-zip", width=width, cut=cut))
    merged = hf_zipit.merge(digits, method="weight-zip", calibrate="none", width=width, cut=cut)
    assert plan.flops == count_flops(merged, (3, 32, 32))
    assert plan.parameters == sum(p.numel() for p in merged.parameters())
    assert plan.spaces == {space["name"]: space["width"] for space in merged.config.zipit["spaces"]}
    budget = plan_merge(Recipe(sources=refs, flops_budget=1.25))
    assert budget.flops == round(1.25 * budget.parents_flops / 2)
    assert budget.parameters is None
    assert "at most 1.25x the FLOPs of one parent" in plan_text(budget)


def test_numbers_have_readable_units():
    found = [si(n) for n in (0, 12, 999, 1000, 77_390, 81_600_000, 4.1e9, 2e12, 9e15)]
    assert found == ["0", "12", "999", "1 k", "77.39 k", "81.6 M", "4.1 G", "2 T", "9000 T"]
    assert si(1_243_000, "B") == "1.243 MB"

"""A dry run tells what the merge then costs, without weights and without writing."""

import json

import pytest

import hf_zipit
from hf_zipit.chain import count_flops
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.planning import plan_merge, plan_text
from hf_zipit.recipe import make_recipe
from tests.models import hf_vit


@pytest.mark.parametrize("cut", [None, "layer2"])
def test_the_plan_is_what_the_merge_costs(digits, cut):
    plan = plan_merge(make_recipe(sources=[str(d) for d in digits], method="average", cut=cut))
    merged = hf_zipit.merge(digits, method="average", calibrate="none", cut=cut)
    assert plan.parameters == sum(p.numel() for p in merged.parameters())
    assert plan.flops == count_flops(merged, (3, 32, 32))
    about = {space["name"]: space["width"] for space in merged.config.zipit["spaces"]}
    assert plan.spaces == about
    assert plan.memory["statistics"] == 0
    assert plan.parents_flops < 2.01 * plan.flops
    assert list(plan.models) == ["digits-0-4", "digits-5-9"]
    assert "layer2" in plan.cuts


def test_statistics_are_counted_by_space_and_data_set(digits):
    recipe = make_recipe(sources=[str(d) for d in digits], data=["a", "b"])
    plan = plan_merge(recipe)
    assert plan.memory["statistics"] == 2 * 8 * sum((2 * n) ** 2 for n in plan.spaces.values())
    assert "to download: nothing" in plan_text(plan)


def test_transformers_models_are_planned_too(tmp_path):
    for seed, name in enumerate("ab"):
        hf_vit(seed).save_pretrained(tmp_path / name)
    plan = plan_merge(make_recipe(sources=[str(tmp_path / "a"), str(tmp_path / "b")]))
    assert plan.spec == "hf-vit"
    assert plan.parameters < plan.parents_parameters


def test_weights_on_the_hub_are_counted_and_not_fetched(hub, digits):
    for name, folder in zip("ab", digits, strict=True):
        hub.add(f"user/{name}", folder)
    plan = plan_merge(make_recipe(sources=["user/a", "user/b"]))
    sizes = {f"user/{n}": (d / "model.safetensors").stat().st_size for n, d in zip("ab", digits, strict=True)}
    assert plan.download == sizes
    assert not [path for method, path in hub.log if method == "GET" and path.endswith("model.safetensors")]
    hf_zipit.load_source("user/a")
    assert plan_merge(make_recipe(sources=["user/a", "user/b"])).download == {**sizes, "user/a": 0}


def test_what_the_merge_would_refuse_is_refused(digits, tmp_path):
    refs = [str(d) for d in digits]
    with pytest.raises(OptionError, match="unknown cut 'layer9'"):
        plan_merge(make_recipe(sources=refs, cut="layer9"))
    with pytest.raises(OptionError, match="unknown method 'magic'"):
        plan_merge(make_recipe(sources=refs, method="magic"))
    with pytest.raises(OptionError, match="needs two or more"):
        plan_merge(make_recipe(sources=refs[:1]))
    with pytest.raises(SourceError, match="neither a folder nor a Hub id"):
        plan_merge(make_recipe(sources=[*refs, "nowhere"]))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "model_args": {"depth": "x"}}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="describes no model that can be built"):
        plan_merge(make_recipe(sources=[refs[0], str(tmp_path)]))


def test_another_width_than_the_parents_is_said_not_to_be_counted(digits):
    refs = [str(d) for d in digits]
    assert plan_merge(make_recipe(sources=refs)).note is None
    wide = plan_text(plan_merge(make_recipe(sources=refs, width=1.5)))
    assert "are counted at the parents' width: width 1.5 changes them" in wide
    budget = plan_text(plan_merge(make_recipe(sources=refs, flops_budget=1.25)))
    assert "for at most 1.25x the FLOPs of one parent" in budget

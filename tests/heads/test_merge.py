"""Merges that keep the heads of all parents: what they compute, what they cost, and where they load."""

import copy
import json

import pytest
import timm
import torch
import transformers

import hf_zipit
from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_all
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.inspection import merge_inspection, merge_text
from hf_zipit.find_spec import find_spec
from hf_zipit.heads.check import keeps_function, key_parts, random_copy, truncation
from hf_zipit.heads.match import read_row, read_tokens
from hf_zipit.heads.plan import with_heads
from hf_zipit.matching.options import Options
from hf_zipit.merging.dry_run import plan_merge, plan_text
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.saving.load import load_merged
from hf_zipit.saving.plain import plain_model
from hf_zipit.sources.load import load_source
from hf_zipit.specs.attention import attentions
from hf_zipit.specs.plan import Plan
from hf_zipit.transform.permute import randomise
from tests.helpers.families import FAMILIES
from tests.helpers.marks import slow_but
from tests.helpers.measure import flops
from tests.helpers.models import hf_vit, images, shuffled, timm_vit, tiny

WITH_HEADS = [
    (family, variant)
    for family in ("hf-vit", "hf-deit", "hf-dinov2", "hf-beit", "hf-clip", "hf-swin", "timm-vit", "timm-swin")
    for variant in FAMILIES[family]
]
QUICK = {("hf-vit", "plain"), ("timm-swin", "plain"), ("hf-deit", "distilled")}
DATA = torch.cat(images(40))


def bound(model):
    source = load_source(model)
    binding = find_spec(source)
    return source, binding, list(attentions(binding).values())


def halved(model):
    """A copy whose heads use half of their units, all others being zero."""
    _, _, layers = bound(model)
    out = copy.deepcopy(model)
    for layer in layers:
        for path, start in (*layer.pair, layer.value):
            module = out.get_submodule(path)
            kept = torch.arange(layer.values.size) % layer.units < layer.units // 2
            for value in (module.weight, module.bias):
                if value is not None:
                    value.data[start : start + layer.values.size][~kept] = 0
    return out


@torch.no_grad()
def outputs(merged, pixels=DATA):
    return merged(pixels).task_logits


def close(a, b, tolerance=1e-3):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("kind", slow_but(QUICK, WITH_HEADS))
def test_every_family_runs_with_other_heads(kind):
    model = FAMILIES[kind[0]][kind[1]]()
    source, binding, layers = bound(model)
    assert len(layers) == len({space.group_axis for space in binding.spaces.values()} - {None})
    for models in (2, 3):
        units = {layer.axis: max(1, layer.units // models) for layer in layers}
        assert keeps_function(random_copy(model), binding, layers, source.input_size, models, units)
    keys = key_parts(random_copy(model), layers, source.input_size)
    several = [layer for layer in layers if layer.module != "attn_pool"]  # whose query is a single token
    assert len(keys) == len(several)
    for layer in several:
        (key,) = set(layer.pair) & keys
        named = key[0].endswith(("k_proj", "key"))
        fused = key == layer.pair[1] and layer.pair[0][0] == key[0]
        assert named or fused


@pytest.mark.parametrize("heads", ["all", "all-full"])
@pytest.mark.parametrize("kind", slow_but(QUICK, WITH_HEADS))
def test_a_shuffled_copy_gives_the_model_back(kind, heads):
    """Exactly: all units of each head, or heads that need no more than half of them."""
    model = FAMILIES[kind[0]][kind[1]]()
    model = halved(model) if heads == "all" else model
    merged = hf_zipit.merge([model, shuffled(model)], DATA, method="permute", heads=heads, calibrate="none")
    with torch.no_grad():
        wanted = logits_of(model(DATA))
    for found in outputs(merged).values():
        assert close(found, wanted, 5e-3)


def test_a_merge_costs_what_one_model_costs():
    parents = [hf_vit(0), hf_vit(1)]
    pair, kept, full = (
        hf_zipit.merge(parents, DATA, method="select", heads=heads, calibrate="none")
        for heads in ("pair", "all", "all-full")
    )
    count = [sum(p.numel() for p in merged.trunk.parameters()) for merged in (pair, kept, full)]
    assert count[0] == count[1] < count[2]
    assert flops(kept, DATA[:1]) == flops(pair, DATA[:1]) < flops(full, DATA[:1])


@pytest.mark.parametrize("models", [3, 4])
def test_heads_that_do_not_divide_the_width_have_fewer_units(models):
    merged = hf_zipit.merge([hf_vit(seed) for seed in range(models)], DATA, method="select", calibrate="none")
    attention = merged.trunk.get_submodule("vit.layers.0.attention")
    assert attention.num_attention_heads == 4 * models
    assert attention.head_dim == 6 // models
    assert attention.q_proj.out_features == 4 * models * (6 // models)


@pytest.mark.parametrize("calibrate", ["none", "refit"])
@pytest.mark.parametrize("cut", [None, "vit.layers.1"])
def test_a_saved_merge_loads_with_equal_logits(cut, calibrate, tmp_path):
    merged = hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", cut=cut, calibrate=calibrate)
    merged.save_pretrained(tmp_path / "merged")
    again = load_merged(tmp_path / "merged")
    wanted = outputs(merged)
    assert all(torch.equal(value, wanted[task]) for task, value in outputs(again).items())


def test_tables_with_an_entry_per_head_have_those_of_all_parents():
    first, second = (FAMILIES["timm-swin"]["plain"](seed) for seed in (0, 1))
    name = "layers.0.blocks.1.attn.relative_position_bias_table"
    merged = hf_zipit.merge([first, second], DATA, method="select", cut="layers.0.blocks.1", calibrate="none")
    tables = [model.state_dict()[name] for model in (first, second)]
    assert torch.equal(merged.trunk.state_dict()[name], torch.cat(tables, 1))


PLAIN = [("hf-vit", "plain"), ("hf-swin", "plain"), ("hf-clip", "plain"), ("hf-beit", "relative positions")]


@pytest.mark.parametrize("kind", slow_but({PLAIN[0], PLAIN[1]}, PLAIN))
def test_a_plain_checkpoint_has_the_new_number_of_heads(kind, tmp_path):
    parents = [FAMILIES[kind[0]][kind[1]](seed) for seed in (0, 1)]
    merged = hf_zipit.merge(parents, DATA, method="select", calibrate="refit")
    plain = plain_model(merged, "transformers")
    plain.save_pretrained(tmp_path)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert close(again(DATA).logits, torch.cat(list(outputs(merged).values()), 1), 1e-5)


def test_no_plain_checkpoint_has_heads_that_do_not_divide_the_width():
    parents = [timm_vit(seed, embed_dim=40) for seed in range(3)]
    merged = hf_zipit.merge(parents, DATA, method="select", calibrate="none")
    with pytest.raises(hf_zipit.ZipItError, match=r"12 in the first layer.*heads pair"):
        plain_model(merged, "timm")


def test_a_merge_of_merges_keeps_the_heads_of_all_parents(tmp_path):
    paths = []
    for k in (0, 2):
        merged = hf_zipit.merge([hf_vit(k), hf_vit(k + 1)], DATA, method="select", calibrate="none")
        paths.append(tmp_path / f"merged{k}")
        merged.save_pretrained(paths[-1])
    merged = hf_zipit.merge(paths, DATA, method="select", calibrate="none")
    assert merged.trunk.get_submodule("vit.layers.0.attention").num_attention_heads == 16
    assert len(outputs(merged)) == 4


def test_a_merge_and_a_plain_model_have_different_heads(tmp_path):
    hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", calibrate="none").save_pretrained(tmp_path / "merged")
    with pytest.raises(hf_zipit.ZipItError, match=r"8 heads of 3 units in one and 4 of 6.*all models at once"):
        hf_zipit.merge([tmp_path / "merged", hf_vit(2)], DATA, method="select", calibrate="none")


def test_the_exported_program_has_equal_logits():
    merged = hf_zipit.merge([timm_vit(0), timm_vit(1)], DATA, method="select", calibrate="none")
    program = torch.export.export(merged, (DATA[:2],), strict=False)
    with torch.no_grad():
        assert close(program.module()(DATA[:2]).logits, merged(DATA[:2]).logits, 1e-5)


def test_equal_for_any_batch_size():
    parents = [hf_vit(0), hf_vit(1)]
    one, other = (
        hf_zipit.merge(parents, DATA, method="select", calibrate="none", batch_size=size, cache=False)
        for size in (7, 40)
    )
    for task, value in outputs(one).items():
        assert close(value, outputs(other)[task], 1e-4)


def test_a_control_has_no_attention_heads():
    with pytest.raises(OptionError, match="'average' reads no activations; use heads pair"):
        hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="average", heads="all")
    with pytest.raises(OptionError, match="no attention heads that could be kept"):
        hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], DATA, method="select", heads="all")
    with pytest.raises(OptionError, match="compat pairs heads"):
        hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="zip", heads="all", compat=True)


@pytest.mark.parametrize(("width", "units"), [(0.5, 1), (1.0, 3), (1.5, 4), (2.0, 6)])
def test_the_width_of_a_merge_is_that_of_its_heads(width, units):
    merged = hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", width=width, calibrate="none")
    assert merged.trunk.get_submodule("vit.layers.0.attention").head_dim == units


def test_queries_are_scaled_as_the_module_divides_them():
    """The factor on the logits follows the new units, so the kept part of the logits stays as it was."""
    _, _, (layer, *_) = bound(hf_vit(0))
    match = truncation(layer, 2, 3)
    product = [match.writes[part][0, 0] for part in layer.pair]
    kept = torch.diag(torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.float64))
    assert torch.allclose(product[0].T @ product[1] * 3**-0.5, kept * 6**-0.5)


def test_parents_are_not_changed():
    parents = [hf_vit(0), hf_vit(1)]
    before = [copy.deepcopy(parent.state_dict()) for parent in parents]
    hf_zipit.merge(parents, DATA, method="select", calibrate="refit")
    for parent, state in zip(parents, before, strict=True):
        assert parent.vit.layers[0].attention.num_attention_heads == 4
        assert all(torch.equal(value, state[name]) for name, value in parent.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in parent.modules())


def test_a_beit_can_be_trained_after_a_merge():
    """The library keeps tables that it has made; those made in inference mode could not be used in training."""
    parents = [FAMILIES["hf-beit"]["relative positions"](seed) for seed in (0, 1)]
    hf_zipit.merge(parents, DATA, method="select", calibrate="refit")
    parents[0](DATA[:2]).logits.sum().backward()


def test_the_plan_says_where_heads_are_kept():
    source, binding, layers = bound(hf_vit(0))
    plan = Plan(binding, len(binding.steps) - 1, None)
    found = with_heads(plan, set(binding.spaces), Options(method="select"), source.model, source.input_size, 2)
    assert found.kept == {layer.axis: 3 for layer in layers}
    assert found.widths == {}
    assert found.attributes["vit.layers.0.attention"]["num_attention_heads"] == 8
    paired = with_heads(plan, set(binding.spaces), Options(method="zip"), source.model, source.input_size, 2)
    assert paired == plan


READ = {
    ("hf-vit", "plain"): [0],
    ("hf-deit", "distilled"): [0, 1],
    ("hf-dinov2", "registers"): [0, *range(5, 21)],
    ("timm-vit", "mean pooling"): None,
    ("timm-swin", "plain"): None,
}


@pytest.mark.parametrize("kind", READ)
def test_only_tokens_that_are_read_count(kind):
    model = FAMILIES[kind[0]][kind[1]]()
    _, binding, layers = bound(model)
    readers = {layer.axis: read_row(layer, binding).parameter.rpartition(".")[0] for layer in layers}
    found = read_tokens(model, readers, Passes(open_all(DATA[:4], 1, None), 4, "cpu"))
    last = list(found.values())
    assert [mask.nonzero().flatten().tolist() for mask in last] == ([] if READ[kind] is None else [READ[kind]])


def test_a_dry_run_states_heads_and_costs(tmp_path):
    refs = [str(tmp_path / name) for name in "ab"]
    for seed, ref in enumerate(refs):
        hf_vit(seed).save_pretrained(ref)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(ref)
    recipe = Recipe(sources=refs, method="select", calibrate="none", num_images=8)
    for heads in ("auto", "all-full", "pair"):
        plan = plan_merge(recipe.changed(heads=heads))
        merged = hf_zipit.merge(refs, DATA, method="select", calibrate="none", heads=heads)
        assert plan.flops == flops(merged, DATA[:1])
        assert plan.parameters == sum(p.numel() for p in merged.parameters())
        counts = {f"vit.layers.{i}.attention": 8 for i in range(3)}
        assert plan.heads == ({} if heads == "pair" else counts)
    assert "heads of all models are kept in 3 layers: 8 in each" in plan_text(plan_merge(recipe))


def test_card_and_inspection_state_the_heads(tmp_path):
    merged = hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", calibrate="none")
    merged.save_pretrained(tmp_path)
    found = merge_inspection(load_merged(tmp_path))
    assert found["attention"] == "8 of 3 units"
    assert "attention heads: those of all parents, 8 of 3 units each" in merge_text(found)
    (space,) = (s for s in found["spaces"] if s["name"] == "vit.layers.0.qk")
    assert space["heads"] == 8
    assert 0.5 < space["kept"] < 1
    assert "those of all parents: 8 of 3 units" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "config",
    [
        {"attributes": None},
        {"attributes": {}},
        {"attributes": {"vit.layers.0.attention": {"scaling": -1}}},
        {"attributes": {"vit.layers.0.attention": {"head_dim": 0}}},
        {"attributes": {"vit.layernorm": {"eps": 1.0}}},
        {"attributes": {"vit.layers.0.attention": {"num_heads": 8}}},
        {"attributes": {"vit.nowhere": {"num_attention_heads": 8}}},
    ],
)
def test_a_config_without_the_right_heads_is_refused(config, tmp_path):
    merged = hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", calibrate="none")
    merged.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(hf_zipit.ZipItError):
        load_merged(tmp_path)


def test_heads_of_fewer_units_than_models_are_paired():
    parents = [hf_vit(seed, num_attention_heads=24) for seed in (0, 1)]  # of one unit each
    merged = hf_zipit.merge(parents, DATA, method="select", calibrate="none")
    assert merged.config.attributes is None


def test_a_budget_does_not_count_heads_of_all_units():
    with pytest.raises(OptionError, match=r"all-full.*flops_budget is 1.2"):
        hf_zipit.merge([hf_vit(0), hf_vit(1)], DATA, method="select", heads="all-full", flops_budget=1.2)


def test_layers_with_a_single_key_are_paired():
    """At 32 pixels, every layer of a PVT reduces its keys to those of one token."""
    config = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    config |= {"image_size": 32, "num_labels": 3}
    parents = [transformers.PvtV2ForImageClassification(transformers.PvtV2Config(**config)).eval() for _ in range(2)]
    merged = hf_zipit.merge([randomise(parent, seed) for seed, parent in enumerate(parents)], DATA, method="select")
    assert merged.config.attributes is None


def test_stages_with_equal_heads_export(tmp_path):
    args = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (4, 4), "window_size": 4}
    refs = []
    for seed in (0, 1):
        model = randomise(timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **args).eval(), seed)
        model.pretrained_cfg["input_size"] = (3, 32, 32)
        refs.append(load_source(model, model_args=args))
    merged = hf_zipit.merge(refs, DATA, method="select", calibrate="none")
    plain = plain_model(merged, "timm")
    with torch.no_grad():
        assert close(plain(DATA), torch.cat(list(outputs(merged).values()), 1), 1e-5)

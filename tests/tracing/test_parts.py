"""Cuts of traced models: parts of their own forward, between which one tensor crosses."""

import copy
import threading

import pytest
import timm
import torch
import transformers
from torch import nn

from hf_zipit.backbones.share import share
from hf_zipit.costs import cost_of
from hf_zipit.evaluation.fidelity import feature_correlation
from hf_zipit.find_spec import describe, find_spec, review
from hf_zipit.merging.merge import Merger
from hf_zipit.models.rerun import Outline, run_part
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.specs.binding import bind
from hf_zipit.specs.parser import parse
from hf_zipit.tracing.parts import Part, parts_of, without
from hf_zipit.tracing.tracer import trace
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.marks import slow
from tests.helpers.measure import flops
from tests.helpers.models import images

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 4, "img_size": 32, "patch_size": 8}
VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "num_attention_heads": [1, 2, 2, 4]}
DENSE = {"block_config": (1, 2), "growth_rate": 8}
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def vit(name):
    return timm.create_model(name, num_classes=5, **SMALL)


def hf(name, **config):
    cls = getattr(transformers, name)
    return cls(cls.config_class(**{"num_labels": 5, **config}))


def siglip():
    return hf("SiglipForImageClassification", vision_config={**VIT, "intermediate_size": 48})


def swin_v2():
    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4]}
    return hf("Swinv2ForImageClassification", window_size=4, **sizes)


class SharedTable(nn.Module):
    """One table of biases is read in every block, and computed before the first; a mask comes back beside the image."""

    def __init__(self):
        super().__init__()
        self.stem = Stem()
        self.table = nn.Parameter(torch.zeros(6))
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 5)

    def forward(self, pixels):
        bias = self.table.exp()
        x, scale = self.stem(pixels)
        for block in self.blocks:
            x = block(x).tanh() + bias * scale
        return self.head(x.mean(1))


class SharedNorm(nn.Module):
    """One batch norm behind every block, and blocks whose outputs are written to."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, stride=8)
        self.blocks = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(3))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, pixels):
        x = self.patch(pixels)
        for block in self.blocks:
            if self.training and block is self.blocks[1]:
                continue
            x = block(x)
            x += 1
            x = self.norm(x).tanh()
        return self.head(x.mean((2, 3)))


class Stem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, pixels):
        return self.conv(pixels).flatten(2).transpose(1, 2), torch.tensor(2.0)


def source_of(model):
    randomise(model.eval(), 0)
    if not hasattr(model, "config"):
        model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), "input_size": (3, 32, 32)}
    return load_source(model)


MODELS = {
    "rotary": (lambda: vit("vit_small_patch16_dinov3"), {"blocks.0", "blocks.1", "blocks.2", "norm"}),
    "attention pool": (siglip, {"vision_model.embeddings", "vision_model.encoder.layers.0"}),
    "sizes": (lambda: hf("SegformerForImageClassification", **STAGES), {"segformer.stages.1.blocks.0"}),
    "concatenation": (lambda: timm.create_model("densenet121", num_classes=5, **DENSE), {"features.transition1.pool"}),
}
MORE = {
    "timm attention pool": (lambda: vit("vit_base_patch16_siglip_224"), {"blocks.1"}),
    "eva": (lambda: vit("eva02_tiny_patch14_224"), {"blocks.0", "blocks.2"}),
    "windows": (swin_v2, {"swinv2.encoder.layers.0.blocks.0", "swinv2.encoder.layers.0.blocks.1"}),
    "registers": (lambda: hf("Dinov2WithRegistersForImageClassification", **VIT), {"dinov2_with_registers.layernorm"}),
    "masked siamese": (lambda: hf("ViTMSNForImageClassification", **VIT, intermediate_size=48), {"vit.layers.0"}),
}
EVERY = [*MODELS, *(slow(name) for name in MORE)]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.sample(2)
def test_every_cut_gives_the_model_back_and_heads_cost_the_remaining_layers(name):
    make, expected = {**MODELS, **MORE}[name]
    source = source_of(make())
    binding = find_spec(source)
    assert expected <= set(binding.cuts)
    other = permuted(source.model, binding, random_labels(binding, 1))
    merger = Merger([source, other], images(8), tasks=["a", "b"])
    with torch.no_grad():
        logits = logits_of(source.model(PIXELS))
    whole = flops(source.model.requires_grad_(False), PIXELS[:1])
    layers = merger.parents.layer_costs()
    for cut in binding.cuts:
        merged = merger.merge(method="permute", cut=cut, calibrate="none").requires_grad_(False)
        with torch.no_grad():
            for out in merged(PIXELS).task_logits.values():
                torch.testing.assert_close(out, logits, rtol=0, atol=1e-4, msg=cut)
        assert flops(merged, PIXELS[:1], tasks="b") <= whole, cut  # without what no classifier reads
        assert flops(merged, PIXELS[:1]) <= 2 * whole
        plan = merger.parents.plan(cut)
        stated = layers.flops(plan.depth, {}, plan.gathers) * merger.parents.costs[0].flops
        assert stated == pytest.approx(cost_of(merged, merger.parents.input_size).flops), cut


@pytest.mark.parametrize(
    ("make", "cuts"),
    [
        (SharedTable, ["stem.conv", "blocks.0", "blocks.1", "blocks.2"]),
        (SharedNorm, ["patch", "blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_toys_are_cut_where_one_tensor_crosses(make, cuts):
    model = randomise(make().eval(), 0)
    binding = bind(parse(describe(model, PIXELS[:1], "toy")), model)
    assert list(binding.cuts) == cuts
    with torch.no_grad():
        expected = model(PIXELS)
        value = PIXELS
        for run in binding.runs(copy.deepcopy(model), (32, 32)):
            value = run(value)
    torch.testing.assert_close(value, expected)


def test_a_part_owns_what_it_alone_needs_and_shares_the_rest():
    model = randomise(SharedTable().eval(), 0)
    parts = parts_of(model, PIXELS[:1], trace(model, PIXELS[:1]))
    assert [(part.name, part.owns) for part in parts] == [
        ("stem.conv", ("table",)),  # it is computed before the first block
        ("blocks.0", ()),
        ("blocks.1", ("table",)),
        ("blocks.2", ("table",)),
        ("call:forward", ("head", "table")),
    ]
    assert [part.name for part in without(parts, "blocks.1")] == ["stem.conv", "blocks.0", "blocks.2", "call:forward"]
    assert without(parts, "blocks.1")[2] == Part("blocks.2", ("table", "blocks.1"), parts[3].space)


def test_parts_run_alone_and_for_any_number_of_images():
    model = randomise(SharedTable().eval(), 0)
    parts = parts_of(model, PIXELS[:1], trace(model, PIXELS[:1]))
    outline = Outline(model, {part.name: [*part.owns, part.name] for part in parts})
    outline.watch(model)
    with torch.no_grad():
        expected = model(PIXELS)
        half = run_part(model, outline, "$pixels", "blocks.0", PIXELS, (32, 32))
        for images in (half, half[:1]):
            out = run_part(model, outline, "blocks.0", None, images, (32, 32))
            torch.testing.assert_close(out, expected[: len(images)])
    with pytest.raises(ValueError, match=r"the model does not call blocks\.9"):
        run_part(model, outline, "blocks.9", None, half, (32, 32))


def replicated(module):
    """A copy as `nn.DataParallel` makes them, with other parameters: zeros."""
    out = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        out._modules[name] = None if child is None else replicated(child)
    for name, value in module._parameters.items():
        out._parameters[name] = None if value is None else nn.Parameter(torch.zeros_like(value))
    out._buffers = dict(module._buffers)
    return out


def test_copies_of_a_model_run_with_their_own_weights(merges):
    other = replicated(merges["cut"])
    with torch.no_grad():
        found = other(PIXELS).task_logits.values()
        again = replicated(other)(PIXELS).task_logits.values()
    assert all(float(logits.abs().max()) == 0 for logits in (*found, *again))


def test_a_module_that_is_left_out_of_a_pass_is_named():
    model = randomise(SharedNorm().eval(), 0)
    parts = parts_of(model, PIXELS[:1], trace(model, PIXELS[:1]))
    outline = Outline(model, {part.name: [*part.owns, part.name] for part in parts})
    outline.watch(model.train())
    with pytest.raises(ValueError, match=r"the model has not called blocks\.1: a merge with a cut cannot leave out"):
        run_part(model, outline, "$pixels", "blocks.1", PIXELS, (32, 32))


def test_a_written_spec_with_parts_passes_its_checks():
    model = randomise(vit("vit_small_patch16_dinov3").eval(), 0)
    text = describe(model, PIXELS[:1], "mine")
    binding = bind(parse(text), model)
    assert review(model, binding, (3, 32, 32)).report.cuts == len(binding.cuts) > 4


@pytest.fixture(scope="module")
def merges():
    """A DINOv3 merged with another one at a cut, and in full; both refitted."""
    sources = [load_source(named(randomise(vit("vit_small_patch16_dinov3").eval(), k)), SMALL) for k in (0, 1)]
    merger = Merger(sources, images(8), tasks=["a", "b"])
    wide = {"method": "zip", "width": 1.25, "cut": "blocks.1"}
    return {
        "cut": merger.merge(method="select", cut="blocks.1", calibrate="refit"),
        "full": merger.merge(method="zip"),
        "wide": merger.merge(**wide),
    }


def named(model):
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
    return model


@pytest.mark.parametrize("name", ["cut", "full", "wide"])
def test_merges_are_saved_loaded_and_exported(merges, name, tmp_path):
    loaded = load_merged(saving.save(merges[name], tmp_path / "out"))
    with torch.no_grad():
        expected = merges[name](PIXELS).logits
        torch.testing.assert_close(loaded(PIXELS).logits, expected, rtol=0, atol=1e-6)
        shapes = {"pixel_values": {0: torch.export.Dim("batch")}}
        program = torch.export.export(loaded, (PIXELS,), dynamic_shapes=shapes, strict=False).module()
        torch.testing.assert_close(program(PIXELS).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(program(PIXELS[[0, 1, 0]]).logits, expected[[0, 1, 0]], rtol=0, atol=1e-6)


def test_heads_hold_only_what_they_run(merges):
    names = {name.partition(".")[0] for name in merges["cut"].heads[0].state_dict()}
    assert names == {"blocks", "norm", "fc_norm", "head"} & names
    assert not any(name.startswith(("blocks.0.", "blocks.1.")) for name in merges["cut"].heads[0].state_dict())
    assert not any(name.startswith("blocks.2.") for name in merges["cut"].trunk.state_dict())


@pytest.mark.parametrize("calibrate", ["repair", "repair-weights", "none"])
@pytest.mark.parametrize(("name", "args"), [("vit_small_patch16_dinov3", SMALL), ("densenet121", DENSE)])
def test_calibrations_and_correlations_see_only_what_a_part_holds(name, args, calibrate):
    """A copy with permuted units is the model itself, so that there is nothing to repair, and every unit agrees."""
    source = load_source(named(randomise(timm.create_model(name, num_classes=5, **args).eval(), 0)), args)
    binding = find_spec(source)
    other = permuted(source.model, binding, random_labels(binding, 1))
    merger = Merger([source, other], images(16), tasks=["a", "b"])
    for cut in binding.cuts:
        recipe = Recipe(method="permute", cut=cut, calibrate=calibrate)
        merged = merger.merge(recipe)
        with torch.no_grad():
            for out in merged(PIXELS).task_logits.values():
                torch.testing.assert_close(out, source.model(PIXELS), rtol=0, atol=1e-4, msg=cut)
        matches = merger.match(merger.plan(recipe), recipe)
        found = feature_correlation(merged, merger.parents.sources, binding, matches, merger.passes)
        assert all(value == pytest.approx(1, abs=1e-3) for value in found.values()), cut
    assert found  # at the last cut, every space is observed in the trunk


def test_threads_do_not_disturb_each_other(merges):
    model = copy.deepcopy(merges["cut"])
    batches = [PIXELS, PIXELS.flip(0), PIXELS[:1], torch.ones(1, 3, 64, 32), torch.ones(1, 3, 48, 48)]
    with torch.no_grad():
        expected = [merges["cut"](pixels).logits for pixels in batches]
    found = {}

    def run(number):
        with torch.no_grad():
            for _ in range(5):
                found[number] = model(batches[number]).logits

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, logits in enumerate(expected):
        torch.testing.assert_close(found[number], logits, rtol=0, atol=1e-6)


def test_a_merge_is_merged_again_at_its_cut(merges):
    source = load_source(merges["cut"])
    again = Merger([source, source], images(8)).merge(method="permute", cut="blocks.1", calibrate="none")
    with torch.no_grad():
        expected = merges["cut"](PIXELS).task_logits
        found = list(again(PIXELS).task_logits.values())
    for logits, wanted in zip(found, [*expected.values()] * 2, strict=True):
        torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)


def test_half_precision_and_other_image_sizes():
    models = [randomise(timm.create_model("densenet121", num_classes=5, **DENSE).eval(), k) for k in (0, 1)]
    merger = Merger([load_source(named(model), DENSE) for model in models], images(8), tasks=["a", "b"])
    merged = merger.merge(method="zip", cut="features.transition1.pool")
    large = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        expected = merged(large).logits
        low = merged.bfloat16()(large.bfloat16()).logits
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0, atol=0.5)


def test_models_of_several_classes_share_a_traced_backbone():
    a, b = (source_of(timm.create_model("densenet121", num_classes=5, **DENSE)) for _ in range(2))
    assert "features.conv0" in share([a, b]).binding.cuts

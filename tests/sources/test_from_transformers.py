"""Vision transformers of both libraries: heads as groups, one-to-one streams, cuts, folders."""

import copy

import pytest
import torch
import transformers
from transformers import ViTImageProcessor

import hf_zipit
from hf_zipit.checks import check_spec
from hf_zipit.errors import SourceError
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.find_spec import find_spec
from hf_zipit.merging.merger import Merger
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.specs.cuts import cut_names
from tests.helpers.marks import slow
from tests.helpers.measure import flops
from tests.helpers.models import hf_vit, images, shuffled, timm_vit

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


MODELS = {
    "hf": hf_vit,
    "timm": timm_vit,
    "registers": lambda seed=0: timm_vit(seed, "vit_small_patch14_reg4_dinov2"),
    "mean pooling": lambda seed=0: timm_vit(seed, class_token=False, global_pool="avg"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_spec_describes_the_model(name):
    model = MODELS[name]()
    report = check_spec(model, find_spec(load_source(model)), (3, 32, 32))
    assert report.spaces == 10
    assert report.grouped == 6


@pytest.mark.parametrize("method", [slow("permute"), "zip"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(2)
def test_a_copy_with_permuted_heads_and_units_gives_the_model_back(name, method):
    model = MODELS[name]()
    merged = hf_zipit.merge([model, shuffled(model)], images(), method=method, calibrate="none", tasks=["a", "b"])
    with torch.no_grad():
        expected = logits_of(model(PIXELS))
        for out in merged(PIXELS).task_logits.values():
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["hf", slow("timm")])
def test_every_cut_gives_the_model_back_and_costs_trunk_and_heads(name):
    model = MODELS[name]()
    binding = find_spec(load_source(model))
    other = shuffled(model)

    whole = flops(model, PIXELS[:1])
    merger = Merger([model, other], images(), tasks=["a", "b"], cache=False)
    for cut in cut_names(binding):
        merged = merger.merge(method="permute", calibrate="none", cut=cut)
        with torch.no_grad():
            expected = logits_of(model(PIXELS))
            for out in merged(PIXELS).task_logits.values():
                torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
        assert flops(merged, PIXELS[:1], tasks="b") == whole, cut
        assert whole <= flops(merged, PIXELS[:1]) < 2 * whole


def test_streams_and_queries_are_matched_one_to_one_and_the_rest_is_zipped():
    merged = hf_zipit.merge(
        [hf_vit(0), hf_vit(1)], images(), method="zip", calibrate="none", tasks=["a", "b"], alpha=0.1, beta=1.0
    )
    spaces = {space["name"]: space for space in merged.config.zipit["spaces"]}
    for name, space in spaces.items():
        if name == "x" or name.endswith("qk"):
            assert space["shared"] == space["width"], name
    assert any(space["within"] for name, space in spaces.items() if name.endswith("mlp"))


def test_the_sources_are_left_untouched():
    models = [hf_vit(0), hf_vit(1)]
    before = [copy.deepcopy(m.state_dict()) for m in models]
    hf_zipit.merge(models, images(16), tasks=["a", "b"])
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["hf", "timm"])
@pytest.mark.sample(1)
def test_a_two_headed_model_can_be_exported(name):
    merged = hf_zipit.merge([MODELS[name](0), MODELS[name](1)], images(16), tasks=["a", "b"], cut=None)

    class Joint(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.merged = merged

        def forward(self, pixels):
            return self.merged(pixels).logits

    exported = torch.export.export(Joint(), (PIXELS,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(PIXELS), merged(PIXELS).logits, rtol=0, atol=1e-6)


def test_folders_of_transformers_merge_save_and_evaluate(tmp_path, digits_data):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    for seed, name in enumerate(("low", "high")):
        labels = {i: str(i + 5 * seed) for i in range(5)}
        hf_vit(seed, id2label=labels, label2id={v: k for k, v in labels.items()}).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    folders = [tmp_path / "low", tmp_path / "high"]
    merged = hf_zipit.merge(folders, digits_data, num_images=32, cut="vit.layers.1")
    loaded = load_merged(saving.save(merged, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS).logits, merged(PIXELS).logits)
    assert (tmp_path / "out" / "preprocessor_config.json").exists()
    rows = evaluate(loaded, digits_data, parents=[load_source(f) for f in folders], num_images=64)
    assert [row.model for row in rows] == ["merged", "parent:low", "parent:high", "ensemble"]
    assert rows[1].flops < rows[0].flops < rows[3].flops


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "their configuration differs in num_attention_heads: 4 and 3"),
        ({"num_hidden_layers": 2}, "their configuration differs in num_hidden_layers: 3 and 2"),
        ({"hidden_size": 32}, "their configuration differs in hidden_size: 24 and 32"),
        ({"image_size": 64}, "their configuration differs in image_size: 32 and 64"),
    ],
)
def test_other_configurations_are_refused_naming_the_field(changes, message):
    with pytest.raises(SourceError, match=message):
        hf_zipit.merge([hf_vit(), hf_vit(**changes)], images(16), tasks=["a", "b"])


def test_another_number_of_heads_is_refused_for_timm():
    with pytest.raises(SourceError, match=r"the feature space blocks\.0\.qk has 24 units in 4 groups and 24 in 3"):
        hf_zipit.merge([timm_vit(), timm_vit(num_heads=3)], images(16), tasks=["a", "b"])


@pytest.mark.parametrize("saved", [False, True])
def test_a_model_that_reads_patches_of_images_of_any_shape_is_refused(saved, tmp_path):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.Siglip2Config(vision_config=sizes, text_config={"bos_token_id": 1, "eos_token_id": 2})
    model = transformers.Siglip2ForImageClassification(config)
    if saved:
        model.save_pretrained(tmp_path)
    name = "config.json" if saved else "Siglip2ForImageClassification"
    with pytest.raises(SourceError, match=f"{name}: siglip2 is a NaFlex model, .*siglip2-base-patch16-224"):
        load_source(tmp_path if saved else model)

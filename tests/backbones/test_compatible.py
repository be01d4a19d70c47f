"""Models are alike if they compute alike: what only training reads keeps none apart, and what changes outputs does."""

import pytest
import timm
import torch
from timm.models import save_for_hf
from transformers import CLIPImageProcessor, ViTImageProcessor

import hf_zipit
from hf_zipit.backbones.behaviour import differences, same_outputs
from hf_zipit.backbones.compatible import check_alike
from hf_zipit.errors import SourceError
from hf_zipit.find_spec import find_spec
from hf_zipit.sources.access import NOTHING
from hf_zipit.sources.load import load_source
from hf_zipit.sources.outline import outline
from hf_zipit.transform.permute import randomise
from tests.helpers.families import timm_swin
from tests.helpers.models import TINY, hf_vit, images, timm_vit, tiny

ARGS = {key: value for key, value in TINY["resnet18"].items() if key != "num_classes"}


def check(first, other):
    a, b = load_source(first), load_source(other)
    check_alike([a, b], find_spec(a))


TRAINING = {
    "problem type": {"problem_type": "single_label_classification"},
    "dropout": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
    "initialisation": {"initializer_range": 0.1},
    "outputs": {"output_attentions": False, "return_dict": True},
    "names": {"id2label": {0: "a", 1: "b", 2: "c"}, "_name_or_path": "user/other"},
    "decoder": {"encoder_stride": 8},
}


@pytest.mark.parametrize("changes", TRAINING.values(), ids=TRAINING)
def test_settings_of_training_do_not_keep_transformers_models_apart(changes):
    check(hf_vit(), hf_vit(1, **changes))


@pytest.mark.parametrize("changes", [{"drop_path_rate": 0.1}, {"drop_rate": 0.5}, {"drop_block_rate": 0.1}], ids=str)
def test_settings_of_training_do_not_keep_timm_models_apart(changes):
    check(tiny("resnet18"), tiny("resnet18", 1, **changes))
    check(tiny("resnet18", 1, **changes), tiny("resnet18"))


def test_other_settings_of_training_do_not_either():
    check(timm_vit(), timm_vit(1, drop_path_rate=0.2, proj_drop_rate=0.1, attn_drop_rate=0.1, pos_drop_rate=0.1))
    check(timm_vit(), timm_vit(1, patch_drop_rate=0.5))
    check(timm_swin(), timm_swin(1, drop_path_rate=0.0))
    model = tiny("resnet18", 1)
    model.bn1.momentum = 0.01
    check(tiny("resnet18"), model.train())


COMPUTED = [
    ({"layer_norm_eps": 1e-6}, "their configuration differs in layer_norm_eps: 1e-12 and 1e-06"),
    ({"hidden_act": "relu"}, "their configuration differs in hidden_act: gelu and relu"),
    ({"num_attention_heads": 3}, "their configuration differs in num_attention_heads: 4 and 3"),
    (
        {"hidden_act": "relu", "hidden_dropout_prob": 0.1, "problem_type": "regression"},
        "their configuration differs in hidden_act: gelu and relu",
    ),
    ({"hidden_size": 32, "hidden_dropout_prob": 0.1}, "their configuration differs in hidden_size: 24 and 32"),
    ({"qkv_bias": False}, "their configuration differs in qkv_bias: True and False"),
]


@pytest.mark.parametrize(("changes", "message"), COMPUTED)
def test_settings_that_change_the_outputs_are_refused_by_name(changes, message):
    with pytest.raises(SourceError, match=message):
        check(hf_vit(), hf_vit(1, **changes))


@pytest.mark.parametrize(
    ("first", "other", "message"),
    [
        (tiny("resnet18"), tiny("resnet18", act_layer="gelu"), r"the module act1 is ReLU\(inplace=True\) and GELU"),
        (tiny("resnet18"), tiny("resnet18", global_pool="max"), "the module global_pool has pool_type avg and max"),
        (timm_vit(global_pool="avg", class_token=True), timm_vit(), "has a parameter fc_norm.weight"),
        (timm_vit(), timm_vit(no_embed_class=True), r"pos_embed has shape \[1, 17, 24\] and \[1, 16, 24\]"),
    ],
    ids=["activation", "pooling", "pooling of tokens", "embedding"],
)
def test_other_functions_of_timm_models_are_refused(first, other, message):
    with pytest.raises(SourceError, match=message):
        check(first, other)


def test_a_setting_that_no_module_shows_is_found_by_running_both_models():
    first, other = timm_vit(), timm_vit(1)
    other.global_pool = "avg"
    with pytest.raises(SourceError, match="the model has global_pool token and avg"):
        check(first, other)
    other.global_pool = "token"
    other.note = "trained on Tuesday"
    check(first, other)


def test_outputs_are_compared_with_random_weights_and_any_number_of_classes():
    """A layer scale near zero hides every block behind it."""
    a, b = (load_source(timm_vit(seed, num_classes=n)) for seed, n in ((0, 5), (1, 9)))
    assert same_outputs(a, b)
    assert differences(a, b, find_spec(a).classifier) == []
    scaled = {"init_values": 1e-9}
    a, b = (load_source(timm_vit(**scaled, **extra)) for extra in ({}, {"act_layer": "relu"}))
    assert not same_outputs(a, b)


def test_the_sources_are_not_changed():
    a, b = hf_vit(0), hf_vit(1, hidden_dropout_prob=0.1, num_labels=3).train()
    before = {k: v.clone() for k, v in b.state_dict().items()}
    check(a, b)
    assert all(torch.equal(v, before[k]) for k, v in b.state_dict().items())
    assert b.training


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16"), ("bfloat16", "float16")])
def test_models_of_several_types_are_merged_in_float32_and_this_is_said(dtypes, caplog):
    models = [hf_vit(seed).to(getattr(torch, name)) for seed, name in enumerate(dtypes)]
    merged = hf_zipit.merge(models, images(16), method="average", calibrate="none", tasks=["a", "b"], cache=False)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert f"the weights have several types (vit in {dtypes[0]}, vit in {dtypes[1]})" in caplog.text
    assert "they are merged in float32" in caplog.text
    assert merged.config.backbone["config"]["dtype"] in (None, "float32")
    assert [next(model.parameters()).dtype for model in models] == [getattr(torch, name) for name in dtypes]


def timm_folder(place, seed=0, **cfg):
    cfg = {"input_size": (3, 32, 32), "test_input_size": None, **cfg}
    model = randomise(timm.create_model("resnet18", num_classes=3, pretrained_cfg_overlay=cfg, **ARGS), seed)
    save_for_hf(model, place, model_args=ARGS, safe_serialization=True)
    return place


SAME_PIXELS = [
    {"test_input_size": (3, 64, 64), "test_crop_pct": 1.0},
    {"license": "mit", "tag": "mine", "url": ""},
    {"mean": (0.485, 0.456, 0.406)},
]
OTHER_PIXELS = [
    ({"mean": (0.5, 0.5, 0.5)}, "their preprocessing differs in mean"),
    ({"crop_pct": 0.8}, "their preprocessing differs in crop_pct"),
    ({"interpolation": "bilinear"}, "their preprocessing differs in interpolation"),
    ({"input_size": (3, 40, 40)}, "their preprocessing differs in input_size: 32 x 32 and 40 x 40"),
]


@pytest.mark.parametrize("changes", SAME_PIXELS, ids=str)
def test_settings_that_make_the_same_pixels_are_alike(tmp_path, changes):
    check(timm_folder(tmp_path / "a"), timm_folder(tmp_path / "b", 1, **changes))


@pytest.mark.parametrize(("changes", "message"), OTHER_PIXELS)
def test_settings_that_make_other_pixels_are_refused_by_name(tmp_path, changes, message):
    with pytest.raises(SourceError, match=message):
        check(timm_folder(tmp_path / "a"), timm_folder(tmp_path / "b", 1, **changes))


def vit_folder(place, processor, seed=0):
    hf_vit(seed).save_pretrained(place)
    processor.save_pretrained(place)
    return place


def test_image_processors_are_compared_by_their_pixels(tmp_path):
    size = {"height": 32, "width": 32}
    a = vit_folder(tmp_path / "a", ViTImageProcessor(size=size))
    same = CLIPImageProcessor(size=size, do_center_crop=False, resample=2, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    check(a, vit_folder(tmp_path / "b", same, 1))
    check(a, vit_folder(tmp_path / "c", ViTImageProcessor(size=size, image_mean=0.5), 1))
    other = vit_folder(tmp_path / "d", ViTImageProcessor(size=size, resample=3), 1)
    with pytest.raises(SourceError, match="their preprocessing differs in resample"):
        check(a, other)


def test_a_dry_run_agrees(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, changes in zip(folders, ({}, {"hidden_dropout_prob": 0.1}, {"hidden_act": "relu"}), strict=True):
        hf_vit(**changes).save_pretrained(folder)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    a, b, c = (outline(str(folder), NOTHING)[0] for folder in folders)
    check_alike([a, b], find_spec(a))
    with pytest.raises(SourceError, match="their configuration differs in hidden_act"):
        check_alike([a, c], find_spec(a))

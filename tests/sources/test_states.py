"""Weights are read as their own library reads them, and refused only where one would be lost or random."""

import argparse
import json
import logging

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import freeze_batch_norm_2d
from timm.models import save_for_hf
from torch import nn
from transformers import CLIPForImageClassification, ResNetForImageClassification, ViTImageProcessor

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.in_memory import module_source
from hf_zipit.sources.load import load_source
from hf_zipit.sources.outline import outline
from hf_zipit.sources.states import COMPILERS, OWNERS, left_prefix
from hf_zipit.transform.permute import randomise
from tests.helpers.families import FAMILIES, SWIN
from tests.helpers.marks import slow, slow_but
from tests.helpers.models import TINY, hf_vit, images, tiny
from tests.helpers.wholes import unet

ARGS = {key: value for key, value in TINY["resnet18"].items() if key != "num_classes"}
WEIGHTS = "model.safetensors"
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
PICKLED = Access(allow_pickle=True)


def timm_folder(place, model=None, args=ARGS):
    save_for_hf(model or tiny("resnet18"), place, model_args=args, safe_serialization=True)
    return place


def vit_folder(place, model=None):
    (model or hf_vit()).save_pretrained(place)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


def rewrite(folder, change):
    """Change the tensors of a folder, by a function of the state dict."""
    state = change(load_file(folder / WEIGHTS))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS, metadata={"format": "pt"})


def prefixed(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def pickled(folder, content):
    (folder / WEIGHTS).unlink(missing_ok=True)
    torch.save(content, folder / "pytorch_model.bin")


def same(source, model, pixels=PIXELS):
    out = [getattr(m(pixels), "logits", None) if hasattr(m, "config") else m(pixels) for m in (source.model, model)]
    return torch.equal(*out)


PREFIXES = ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.", "model._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@torch.no_grad()
def test_prefixes_of_compilers_and_trainers_are_removed(tmp_path, prefix):
    folder = timm_folder(tmp_path / "model")
    rewrite(folder, prefixed(prefix))
    assert same(load_source(folder), tiny("resnet18"))
    assert outline(str(folder), PICKLED)[0].model.state_dict().keys() == tiny("resnet18").state_dict().keys()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
@torch.no_grad()
def test_prefixes_are_removed_for_transformers_and_smp(tmp_path, prefix):
    folder = vit_folder(tmp_path / "vit")
    rewrite(folder, prefixed(prefix))
    assert same(load_source(folder), hf_vit())
    segmenter = unet().eval()
    segmenter.save_pretrained(tmp_path / "unet")
    rewrite(tmp_path / "unet", prefixed(prefix))
    assert torch.equal(load_source(tmp_path / "unet").model(PIXELS), segmenter(PIXELS))


def test_a_prefix_belongs_to_the_model_if_its_own_names_have_it():
    names = ["model.a", "model.b"]
    assert left_prefix(names, OWNERS) == "model."
    assert left_prefix(names, OWNERS, own=["model.a"]) == ""
    assert left_prefix(["module.a", "b"], COMPILERS) == ""
    assert left_prefix([], COMPILERS) == ""


def test_an_error_names_the_tensors_and_the_prefix_that_was_removed(tmp_path):
    folder = timm_folder(tmp_path / "model")
    rewrite(folder, lambda s: prefixed("_orig_mod.")({k: v for k, v in s.items() if k != "fc.bias"}))
    with pytest.raises(SourceError, match=r"without the prefix _orig_mod\. of its names .* fc\.bias is missing"):
        load_source(folder)


@torch.no_grad()
def test_one_of_several_states_is_taken_as_timm_does_and_named(tmp_path, caplog):
    folder = timm_folder(tmp_path / "model")
    states = {seed: tiny("resnet18", seed).state_dict() for seed in (0, 1)}
    args = argparse.Namespace(lr=0.1)
    pickled(folder, {"epoch": 3, "args": args, "state_dict": states[1], "state_dict_ema": states[0]})
    assert same(load_source(folder, access=PICKLED), tiny("resnet18"))
    assert "holds several states (state_dict_ema, state_dict): state_dict_ema is read" in caplog.text
    caplog.clear()
    caplog.set_level(logging.INFO, "hf_zipit")
    pickled(folder, {"model": prefixed("module.")(states[1])})
    assert same(load_source(folder, access=PICKLED), tiny("resnet18", 1))
    assert "the weights under model are read" in caplog.text
    assert "the prefix module. is removed" in caplog.text
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(PIXELS), tiny("resnet18", 1)(PIXELS))


def old_swin(state):
    return {
        **{
            k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): v
            for k, v in state.items()
        },
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long),
    }


def old_vit(state):
    """The first models embedded patches by a linear layer."""
    return {**state, "patch_embed.proj.weight": state["patch_embed.proj.weight"].flatten(1)}


def facebook_convnext(state):
    """The names that the authors of ConvNeXt use."""
    pairs = [
        ("stem.", "downsample_layers.0."),
        (".conv_dw.", ".dwconv."),
        ("head.fc.", "head."),
        ("head.norm.", "norm."),
    ]
    pairs += [(f"stages.{i}.downsample.", f"downsample_layers.{i}.") for i in range(1, 4)]
    pairs += [(f"stages.{i}.blocks.", f"stages.{i}.") for i in range(4)]
    pairs += [(".mlp.fc1.", ".pwconv1."), (".mlp.fc2.", ".pwconv2.")]
    out = {}
    for name, value in state.items():
        for new, old in pairs:
            name = name.replace(new, old)
        out[name] = value.flatten(1) if "pwconv" in name and value.ndim == 4 else value
    return out


def facebook_resmlp(state):
    pairs = [("stem.", "patch_embed."), ("linear_tokens.", "attn."), ("mlp_channels.", "mlp."), (".ls", ".gamma_")]
    out = {}
    for name, value in state.items():
        for new, old in pairs:
            name = name.replace(new, old)
        out[name] = value.flatten() if name.endswith((".alpha", ".beta")) else value
    return out


def with_indices(state):
    """LeViT once saved the indices of its attention biases."""
    indices = {k.replace("biases", "bias_idxs"): torch.zeros(4, 4) for k in state if k.endswith("attention_biases")}
    return {**state, **indices}


VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 4, "depth": 3}
OLDER = {  # architecture, its arguments, and the tensors under their earlier names
    "swin": ("swin_tiny_patch4_window7_224", SWIN, old_swin),
    "vit": ("vit_tiny_patch16_224", VIT, old_vit),
    "convnext": ("convnext_atto", {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24)}, facebook_convnext),
    "swinv2": ("swinv2_tiny_window8_256", SWIN, old_swin),
    "resmlp": ("resmlp_12_224", {"img_size": 32}, facebook_resmlp),
    "levit": ("levit_128s", {}, with_indices),
}


@pytest.mark.parametrize("name", slow_but(("swin", "vit", "convnext"), OLDER))
@torch.no_grad()
def test_names_of_earlier_versions_are_read_as_timm_reads_them(tmp_path, name):
    architecture, args, older = OLDER[name]
    model = randomise(timm.create_model(architecture, num_classes=3, **args).eval(), 0)
    folder = timm_folder(tmp_path / "model", model, args)
    rewrite(folder, older)
    source = load_source(folder)
    pixels = torch.randn(2, *source.input_size)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True, **args).eval()
    assert torch.equal(source.model(pixels), theirs(pixels))
    assert torch.equal(source.model(pixels), model(pixels))


SMALL = {  # architectures with a filter of their own, in sizes that build at once
    "deit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 4, "depth": 2},
    "swinv2_tiny_window8_256": {**SWIN},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 1},
    "test_vit": {},
    "test_convnext": {},
    "test_mambaout": {},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.sample(3)
@torch.no_grad()
def test_every_family_is_read_through_its_own_filter(tmp_path, name):
    model = timm.create_model(name, num_classes=3, **SMALL[name]).eval()
    folder = timm_folder(tmp_path / "model", model, SMALL[name])
    source = load_source(folder)
    pixels = torch.randn(1, *source.input_size)
    assert torch.equal(source.model(pixels), model(pixels))


@torch.no_grad()
def test_the_background_class_of_some_checkpoints_is_cut_off_as_timm_does(tmp_path):
    model = tiny("resnet18")
    folder = timm_folder(tmp_path / "model", model)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["label_offset"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    assert same(load_source(folder), model)
    rewrite(folder, lambda s: {k: torch.cat([v[:1] * 0, v]) if k.startswith("fc.") else v for k, v in s.items()})
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(theirs(PIXELS), model(PIXELS))
    assert same(load_source(folder), model)


@torch.no_grad()
def test_frozen_batch_norms_leave_no_counts_of_batches(tmp_path):
    frozen = freeze_batch_norm_2d(tiny("resnet18"))
    folder = timm_folder(tmp_path / "model", frozen)
    assert not any("num_batches" in key for key in load_file(folder / WEIGHTS))
    torch.testing.assert_close(load_source(folder).model(PIXELS), frozen(PIXELS))
    rewrite(folder, lambda s: {k: v for k, v in s.items() if k != "bn1.running_mean"})
    with pytest.raises(SourceError, match=r"bn1\.running_mean is missing"):
        load_source(folder)


@torch.no_grad()
def test_counts_of_batches_may_be_missing_for_transformers(tmp_path):
    model = FAMILIES["hf-resnet"]["basic"]()
    folder = vit_folder(tmp_path / "model", model)
    rewrite(folder, lambda s: {k: v for k, v in s.items() if "num_batches" not in k})
    source = load_source(folder)
    assert isinstance(source.model, ResNetForImageClassification)
    assert same(source, model)
    rewrite(folder, lambda s: {k: v for k, v in s.items() if "running_mean" not in k})
    with pytest.raises(SourceError, match=r"normalization\.running_mean is missing; .*, and \d+ more"):
        load_source(folder)


@torch.no_grad()
def test_what_transformers_leaves_out_is_left_out_with_a_warning(tmp_path, caplog):
    folder = vit_folder(tmp_path / "vit")
    rewrite(folder, lambda s: {**s, "vit.pooler.dense.weight": torch.zeros(24, 24)})
    assert same(load_source(folder), hf_vit())
    assert "a ViTForImageClassification has no place for vit.pooler.dense.weight" in caplog.text
    caplog.clear()
    clip = FAMILIES["hf-clip"]["plain"]()
    folder = vit_folder(tmp_path / "clip", clip)
    rewrite(folder, lambda s: {**s, "vision_model.embeddings.position_ids": torch.arange(17)[None]})
    source = load_source(folder)
    assert isinstance(source.model, CLIPForImageClassification)
    assert "position_ids" not in caplog.text
    assert same(source, clip)


@pytest.mark.parametrize(
    "name", ["vit.layers.3.attention.q_proj.weight", "vit.layers.0.attention.extra.weight", "vit.layernorm.extra"]
)
def test_weights_of_layers_are_not_left_out_in_silence(tmp_path, name):
    folder = vit_folder(tmp_path / "vit")
    rewrite(folder, lambda s: {**s, name: torch.zeros(24)})
    with pytest.raises(SourceError, match=f"does not fit its config.json: {name} is unexpected"):
        load_source(folder)


def test_a_random_classifier_is_refused(tmp_path):
    folder = vit_folder(tmp_path / "vit")
    rewrite(folder, lambda s: {k: v for k, v in s.items() if "classifier" not in k})
    with pytest.raises(SourceError, match=r"classifier\.bias is missing; classifier\.weight is missing"):
        load_source(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("make", [timm_folder, vit_folder])
def test_quantized_weights_are_refused(tmp_path, make, dtype):
    folder = make(tmp_path / "model")
    rewrite(folder, lambda s: {k: v.to(dtype) if k.endswith("weight") else v for k, v in s.items()})
    with pytest.raises(SourceError, match=r"weight holds numbers of type .* quantized weights cannot be merged"):
        load_source(folder)


def test_quantized_pickles_are_refused(tmp_path):
    folder = timm_folder(tmp_path / "model")
    pickled(folder, {k: v.to(torch.int8) for k, v in tiny("resnet18").state_dict().items()})
    with pytest.raises(SourceError, match=r"weight holds torch\.int8, not floating-point numbers"):
        load_source(folder, access=PICKLED)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("make", [timm_folder, vit_folder])
def test_weights_that_are_no_numbers_are_refused_when_the_model_is_opened(tmp_path, make, value):
    folder = make(tmp_path / "model")

    def spoil(state):
        name = next(key for key in state if key.endswith(("fc.weight", "classifier.weight")))
        state[name][0, :2] = value
        return state

    rewrite(folder, spoil)
    with pytest.raises(SourceError, match=r"model: 2 of the \d+ numbers in (fc|classifier)\.weight are not finite"):
        load_source(folder)


def test_modules_with_weights_that_are_no_numbers_are_refused():
    model = tiny("resnet18")
    model.bn1.running_var[0] = float("nan")
    message = r"the ResNet in memory: 1 of the \d+ numbers in bn1\.running_var are not finite"
    with pytest.raises(SourceError, match=message):
        load_source(model)
    with pytest.raises(SourceError, match=message):
        module_source(model, "image-classification")
    with torch.device("meta"), pytest.raises(SourceError, match="the ResNet in memory has no weights"):
        load_source(timm.create_model("resnet18", **TINY["resnet18"]))


class Compiled(nn.Module):
    """What `torch.compile` returns, without the seconds that it takes."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module


@pytest.mark.parametrize("compiled", [Compiled, slow(torch.compile)])
@torch.no_grad()
def test_wrapped_modules_are_merged_like_the_modules_inside(compiled):
    wrapped = [compiled(tiny("resnet18", 0)), nn.DataParallel(tiny("resnet18", 1))]
    options = {"method": "average", "calibrate": "none", "tasks": ["a", "b"], "cache": False}
    merged = hf_zipit.merge(wrapped, images(16), **options)
    plain = hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], images(16), **options)
    assert torch.equal(merged(PIXELS).logits, plain(PIXELS).logits)
    assert type(load_source(compiled(nn.DataParallel(hf_vit()))).model).__name__ == "ViTForImageClassification"


def test_scripted_modules_are_refused_by_name():
    with pytest.warns(FutureWarning, match="deprecated"):
        scripted = torch.jit.trace(tiny("resnet18"), PIXELS)
    with pytest.raises(SourceError, match=r"ResNet is a scripted module .* pass the module that it was made of"):
        load_source(scripted)


@torch.no_grad()
def test_sharded_files_lose_their_prefix_too(tmp_path):
    folder = timm_folder(tmp_path / "model")
    state = prefixed("module.")(load_file(folder / WEIGHTS))
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: state[name] for name in mine}, folder / file)
    index = {"weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    assert same(load_source(folder), tiny("resnet18"))

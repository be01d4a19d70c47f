"""What is saved is what was in memory."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import hf_zipit
from hf_zipit.errors import OutputError, SourceError
from hf_zipit.sources.load import load_source
from hf_zipit.sources.preprocessing import preprocessing_of
from tests.helpers.models import images, timm_vit, tiny
from tests.helpers.wholes import pyramid, whole


def test_a_hook_that_would_be_lost_is_told_and_the_merge_is_not_saved(tmp_path, caplog):
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    for model in models:
        model.conv1.register_forward_hook(lambda module, args, out: 3 * out)
    sources = [load_source(model, {"channels": (8, 16, 24, 32), "layers": (2, 1, 1, 1)}) for model in models]
    assert "module conv1 of the ResNet in memory has hooks" in caplog.text
    merged = hf_zipit.merge(sources, images(8), method="first-parent", calibrate="none", cache=False)
    with pytest.raises(OutputError, match="the merge is not saved: loaded again, it computes something else"):
        hf_zipit.save(merged, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_stated_input_size_that_the_merge_cannot_read_is_refused(tmp_path):
    merged = hf_zipit.merge([timm_vit(0), timm_vit(1)], images(8), cache=False)
    with pytest.raises(OutputError, match=r"cannot run on an image of its stated input size 3 x 32 x 32"):
        hf_zipit.save(merged, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_parametrised_weights_are_refused():
    model = tiny("resnet18")
    torch.nn.utils.parametrizations.weight_norm(model.fc)
    with pytest.raises(SourceError, match="module fc of the ResNet in memory has parametrised weights"):
        load_source(model)


def test_arguments_that_timm_takes_from_the_preprocessing_are_recorded(tmp_path):
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}
    settings = {"input_size": (3, 16, 16), "crop_pct": 1.0, "fixed_input_size": True}
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", num_classes=2, pretrained_cfg_overlay=settings, **args)
        names = {"label_names": ["x", "y"]}
        save_for_hf(model, tmp_path / name, model_config=names, model_args=args, safe_serialization=True)
    file = tmp_path / "a" / "config.json"
    config = json.loads(file.read_text())
    del config["model_args"]["img_size"]
    file.write_text(json.dumps(config))
    assert load_source(tmp_path / "a").backbone["model_args"]["img_size"] == [16, 16]
    pixels = torch.randn(4, 3, 16, 16)
    merged = hf_zipit.merge([tmp_path / "a", tmp_path / "b"], [pixels], cache=False)
    hf_zipit.save(merged, tmp_path / "merged")
    again = hf_zipit.ZipItForImageClassification.from_pretrained(tmp_path / "merged").eval()
    assert torch.allclose(again(pixels).logits, merged(pixels).logits)


def test_a_merge_with_masks_reads_images_as_its_saved_processor_does():
    classifier = load_source(tiny("resnet18", 0))
    assert classifier.settings["crop_pct"] < 1
    merged = hf_zipit.merge([classifier, whole(pyramid(), "image-segmentation")], images(8), cache=False)
    _, transform = preprocessing_of(merged)
    picture = Image.fromarray((np.random.default_rng(0).random((40, 56, 3)) * 255).astype(np.uint8))
    picture = picture.resize((448, 320), Image.Resampling.BICUBIC)
    saved = torch.as_tensor(merged.image_processor(picture, return_tensors="pt")["pixel_values"][0])
    assert (transform(picture) - saved).abs().mean() < 0.05

"""The images that a model reads have its own number of channels, and its logits mean what its library says."""

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from transformers import ViTForImageClassification, ViTImageProcessor

import hf_zipit
from hf_zipit.errors import DataError, SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.saving.plain import write_plain
from hf_zipit.sources.load import load_source
from hf_zipit.sources.pixels import per_channel
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.sources.processors import image_size
from hf_zipit.sources.source import MODES, PROBLEMS
from tests.helpers.models import TINY, hf_vit, tiny

ARGS = {key: value for key, value in TINY["resnet18"].items() if key != "num_classes"}


def picture(channels):
    values = np.random.default_rng(0).integers(0, 255, (40, 40, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, MODES[channels])


def timm_folder(place, channels, classes=3, seed=0, **cfg):
    cfg = {"input_size": (channels, 32, 32), "crop_pct": 1.0, "test_input_size": None, **cfg}
    model = tiny("resnet18", seed, num_classes=classes, in_chans=channels, pretrained_cfg_overlay=cfg)
    labels = [f"{place.name}{i}" for i in range(classes)]
    args = {**ARGS, "in_chans": channels}
    save_for_hf(model, place, model_config={"label_names": labels}, model_args=args, safe_serialization=True)
    return place


def vit_folder(place, channels, processor, seed=0):
    hf_vit(seed, num_channels=channels).save_pretrained(place)
    processor.save_pretrained(place)
    return place


def processor(channels, **changes):
    means = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    return ViTImageProcessor(**{"size": {"height": 32, "width": 32}, **means, **changes})


def change(file, **changes):
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("channels", MODES)
def test_a_timm_folder_reads_images_of_its_own_channels(tmp_path, channels):
    source = load_source(timm_folder(tmp_path / "a", channels, mean=(0.5,), std=(0.5,)))
    assert source.input_size == (channels, 32, 32)
    assert source.preprocessing["mean"] == (0.5,) * channels
    pixels = source.transform(picture(channels))
    assert source.model(pixels[None]).shape == (1, 3)


@pytest.mark.parametrize("channels", MODES)
def test_a_transformers_folder_reads_images_of_its_own_channels(tmp_path, channels):
    source = load_source(vit_folder(tmp_path / "a", channels, processor(channels)))
    assert source.input_size == (channels, 32, 32)
    assert source.model(source.transform(picture(channels))[None]).logits.shape == (1, 5)


def test_the_channels_are_those_of_the_module_and_not_of_its_family():
    assert load_source(timm.create_model("resnet18", in_chans=1)).input_size == (1, 224, 224)
    assert load_source(timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=4)).input_size == (4, 32, 32)
    crop = processor(1, do_center_crop=True, crop_size={"height": 24, "width": 24}, size={"shortest_edge": 32})
    assert image_size({"num_channels": 1}, crop) == (1, 24, 24)


def test_other_bands_than_pictures_have_no_mode_but_are_read(tmp_path):
    source = load_source(timm_folder(tmp_path / "a", 6, mean=(0.5,), std=(0.5,)))
    assert source.input_size == (6, 32, 32)
    assert 6 not in MODES


def test_a_mean_for_other_channels_is_refused_where_images_are_read(tmp_path):
    folder = timm_folder(tmp_path / "a", 1, mean=(0.5,), std=(0.5,))
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", pretrained_cfg={**config["pretrained_cfg"], "mean": [0.4, 0.5, 0.6]})
    message = r"mean in pretrained_cfg is \[0\.4, 0\.5, 0\.6\], but the model reads 1 channel: state one value"
    with pytest.raises(SourceError, match=message):
        load_source(folder)
    module = load_source(tiny("resnet18", in_chans=1))
    assert module.model(torch.zeros(1, *module.input_size)).shape == (1, 5)
    with pytest.raises(DataError, match=r"mean in pretrained_cfg .* the model reads 1 channel"):
        module.transform(picture(1))


def test_an_image_processor_for_other_channels_is_refused(tmp_path):
    folder = vit_folder(tmp_path / "a", 1, ViTImageProcessor(size={"height": 32, "width": 32}))
    with pytest.raises(
        SourceError, match=r"preprocessor_config\.json: vit: image_mean of .* the model reads 1 channel"
    ):
        load_source(folder)


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_a_merge_of_greyscale_models_keeps_its_channels(tmp_path, library):
    if library == "timm":
        places = [timm_folder(tmp_path / name, 1, seed=i, mean=(0.5,), std=(0.2,)) for i, name in enumerate("ab")]
    else:
        places = [vit_folder(tmp_path / name, 1, processor(1), i) for i, name in enumerate("ab")]
    parent = load_source(places[0])
    merged = hf_zipit.merge(places, method="average", calibrate="none", cache=False)
    folder = saving.save(merged, tmp_path / "merged")
    for model in (merged, load_merged(folder)):
        size, transform = preprocessing_of(model)
        assert size == (1, 32, 32)
        assert torch.equal(transform(picture(1)), parent.transform(picture(1)))
    assert load_source(folder).input_size == (1, 32, 32)
    (tmp_path / "plain").mkdir()
    write_plain(load_merged(folder), tmp_path / "plain", library, None, parent.processor)
    plain = load_source(tmp_path / "plain")
    assert plain.input_size == (1, 32, 32)
    assert torch.equal(plain.transform(picture(1)), parent.transform(picture(1)))


def test_one_value_is_repeated_for_all_channels():
    assert per_channel(0.5, 2) == (0.5, 0.5)
    assert per_channel([0.5], 3) == (0.5, 0.5, 0.5)
    assert per_channel([0.1, 0.2], 3) is None


def test_what_the_logits_mean_is_what_the_library_says():
    assert load_source(tiny("resnet18")).problem == "single-label"
    assert load_source(tiny("resnet18", num_classes=1)).problem == "binary"
    for stated, classes, problem in (
        (None, 3, "single-label"),
        (None, 1, "binary"),
        ("single_label_classification", 3, "single-label"),
        ("multi_label_classification", 3, "multi-label"),
        ("multi_label_classification", 1, "binary"),
        ("regression", 1, "regression"),
        ("regression", 2, "regression"),
    ):
        assert load_source(hf_vit(num_labels=classes, problem_type=stated)).problem == problem, (stated, classes)
        assert problem in PROBLEMS
    assert isinstance(hf_vit(), ViTForImageClassification)

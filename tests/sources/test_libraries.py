"""Every library goes through one interface; models and their outlines agree."""

import json

import pytest
import torch
import transformers
from torch import nn

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import NOTHING
from hf_zipit.sources.library import LIBRARIES, library_of
from hf_zipit.sources.load import load_source
from hf_zipit.sources.outline import outline
from hf_zipit.sources.preprocessing import preprocessing_of
from tests.helpers.models import hf_vit, images
from tests.helpers.wholes import dinov2_config, unet


def test_each_library_knows_its_own_config():
    configs = [{"architecture": "resnet18"}, {"_model_class": "Unet"}, {"model_type": "vit"}]
    assert [library_of(config) for config in configs] == list(LIBRARIES)
    assert library_of({}) is None


def test_a_module_of_no_library_is_refused_with_the_way_out():
    with pytest.raises(SourceError, match=r"a Linear in memory cannot be rebuilt later.*hf_zipit\.module_source"):
        load_source(nn.Linear(2, 2))


def test_an_outline_is_the_model_without_its_weights(digits, tmp_path):
    hf_vit().save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    unet().save_pretrained(tmp_path / "unet")
    for folder, plain in ((digits[0], True), (tmp_path / "vit", True), (tmp_path / "unet", False)):
        sketch, missing = outline(str(folder), NOTHING)
        model = load_source(folder)
        assert missing == 0
        assert {p.is_meta for p in sketch.model.parameters()} == {plain}
        shapes = [{k: v.shape for k, v in source.model.state_dict().items()} for source in (sketch, model)]
        assert shapes[0] == shapes[1]
        for field in ("name", "backbone", "labels", "preprocessing", "kind"):
            assert getattr(sketch, field) == getattr(model, field), field


def test_what_is_recorded_of_a_config_depends_on_the_kind_as_it_always_did():
    classifier = load_source(hf_vit()).backbone["config"]
    features = load_source(transformers.Dinov2Model(dinov2_config())).backbone["config"]
    for config in (classifier, features):
        assert not {"id2label", "label2id", "num_labels", "architectures", "transformers_version"} & set(config)
    assert "dtype" in classifier
    assert "dtype" not in features


def test_the_input_size_is_what_the_processor_makes_whatever_the_kind(tmp_path):
    crop = {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}}
    for name, cls in (("classes", transformers.Dinov2ForImageClassification), ("features", transformers.Dinov2Model)):
        cls(dinov2_config()).save_pretrained(tmp_path / name)
        transformers.BitImageProcessor(**crop).save_pretrained(tmp_path / name)
        assert load_source(tmp_path / name).input_size == (3, 40, 40)


def test_weights_of_other_shapes_do_not_fit_a_segmentation_model(tmp_path):
    unet().save_pretrained(tmp_path / "unet")
    file = tmp_path / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": 5}))
    with pytest.raises(SourceError, match=r"does not fit its config\.json: segmentation_head.* has shape"):
        load_source(tmp_path / "unet")


@pytest.mark.slow
def test_merges_of_both_kinds_prepare_images_as_their_sources_do(digits, tmp_path):
    from PIL import Image

    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    for seed, name in enumerate("ab"):
        hf_vit(seed).save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    transformers.ViTModel(hf_vit().config).save_pretrained(tmp_path / "features")
    processor.save_pretrained(tmp_path / "features")
    pairs = ([str(d) for d in digits], [tmp_path / "a", tmp_path / "b"], [tmp_path / "a", tmp_path / "features"])
    for number, pair in enumerate(pairs):
        expected = load_source(pair[0])
        merged = hf_zipit.merge(pair, images(16), method="average", calibrate="none", cache=False)
        for model in (merged, load_merged(saving.save(merged, tmp_path / f"merged-{number}"))):
            size, transform = preprocessing_of(model)
            assert tuple(size) == expected.input_size
            assert torch.equal(torch.as_tensor(transform(picture)), torch.as_tensor(expected.transform(picture)))

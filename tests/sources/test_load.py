import json
import shutil

import pytest
import timm
import torch

import hf_zipit
from hf_zipit.backbones.compatible import check_alike
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.find_spec import find_spec
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.from_timm import untrained
from hf_zipit.sources.load import load_source
from hf_zipit.specs.cuts import cut_names
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.models import images, tiny


@pytest.fixture
def folder(digits, tmp_path):
    return shutil.copytree(digits[0], tmp_path / "model")


def test_a_folder_is_loaded_with_labels_preprocessing_and_origin(digits):
    source = load_source(digits[0])
    assert source.name == "digits-0-4"
    assert source.labels == ["0", "1", "2", "3", "4"]
    assert source.input_size == (3, 32, 32)
    assert source.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert len(source.origin["sha256"]) == 64
    assert "/" not in source.origin["folder"]
    assert load_source(source) is source


def test_a_module_is_loaded_with_the_arguments_it_was_made_with():
    assert load_source(tiny("cifar_resnet20")).backbone["model_args"] == {"depth": 8, "width": 1}
    assert load_source(tiny("resnet18"), {"layers": [2, 1, 1, 1]}).backbone["model_args"] == {"layers": [2, 1, 1, 1]}
    assert load_source(tiny("resnet18")).labels == [f"LABEL_{i}" for i in range(5)]


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_of_a_folder_of_models_these_are_named(folder):
    (folder.parent / "empty").mkdir()
    with pytest.raises(SourceError, match=rf"is not a model: it has no config\.json; models in it: {folder.name}$"):
        load_source(folder.parent)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is not a model: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
            "transformers cannot load it: it does not name its class",
        ),
        (lambda f: spoil_config(f, architecture="resnet999"), "timm cannot build resnet999"),
        (lambda f: spoil_config(f, model_args={"wings": 2}), "timm cannot build cifar_resnet20"),
        (lambda f: spoil_config(f, model_args={"depth": 9}), "depth is 9"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"only pickled .* safe_serialization=True\), or .* --allow-pickle",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 100), "is damaged"),
        (lambda f: spoil_config(f, num_classes=7), r"fc.weight has shape \[5, 64\], not \[7, 64\]"),
        (lambda f: spoil_config(f, model_args={"depth": 14}), r"layer1\.1\.conv1\.weight is missing"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(SourceError, match=message):
        load_source(folder)


def test_truncated_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="is damaged"):
        load_source(folder)


def test_what_is_neither_a_folder_nor_an_id_is_refused(folder):
    for name, message in (
        ("not a model", "neither a folder nor a Hub id"),
        ("./user", "no model at './user': there is no such folder"),
        ("../user/gone", "there is no such folder"),
        ("user/does-not-exist", "user/does-not-exist is neither a folder nor fully cached"),
        (folder / "config.json", "is a file"),
    ):
        with pytest.raises(SourceError, match=message):
            load_source(name)
    with pytest.raises(SourceError, match="and not a timm architecture"):
        untrained("resnet999")


def test_a_class_without_a_spec_is_traced_and_says_so(caplog):
    model = timm.create_model("regnetx_002", num_classes=5)
    binding = find_spec(load_source(model))
    assert "no spec describes this RegNet: its feature spaces were traced and checked" in caplog.text
    assert binding.spec.family == "traced-regnet"
    assert len(binding.spaces) == 31
    assert {"stem", "s1", "s2"} <= set(binding.cuts)
    assert cut_names(binding)["s3.b4"] == "s3"


@pytest.mark.slow
def test_a_variant_that_its_familys_spec_does_not_cover_is_traced(caplog):
    """Efficient channel attention convolves over neighbouring channels: those cannot move."""
    model = timm.create_model("ecaresnet26t", channels=(8, 16, 24, 32), layers=(1, 1, 1, 1), num_classes=5)
    binding = find_spec(load_source(model))
    assert "timm_resnet.yaml does not cover layer1.0.se.conv.weight" in caplog.text
    assert "no spec describes this ResNet" in caplog.text
    assert 0 < len(binding.spaces) < 16


@pytest.mark.parametrize(
    "name",
    ["test_byobnet", "cait_xxs24_224", "regnetx_002"],
)
@pytest.mark.slow
def test_traced_models_merge_save_and_load(name, tmp_path):
    """With a chain, and without one (`cait`): then the classifier holds the classes of both tasks."""
    args = {"img_size": 32, "depth": 2} if "cait" in name else {}
    size = 32 if args else 64
    a, b = (randomise(timm.create_model(name, num_classes=n, **args).eval(), n) for n in (5, 3))
    source = load_source(a, args)
    binding = find_spec(source)
    other = permuted(a, binding, random_labels(binding, 0))
    merged = hf_zipit.merge([source, load_source(other, args)], images(32, size), method="permute", tasks=["a", "b"])
    pixels = torch.randn(2, 3, size, size)
    plain = hf_zipit.merge(
        [source, load_source(other, args)], images(32, size), method="permute", tasks=["a", "b"], calibrate="none"
    )
    with torch.no_grad():
        for out in plain(pixels).task_logits.values():
            torch.testing.assert_close(out, a(pixels), rtol=0, atol=1e-4)
        assert merged(pixels, tasks="b").logits.shape == (2, 5)
    two = hf_zipit.merge([source, load_source(b, args)], images(16, size), tasks=["a", "b"])
    loaded = load_merged(saving.save(two, tmp_path / "out"))
    with torch.no_grad():
        assert loaded(pixels).logits.shape == (2, 8)
        assert torch.equal(loaded(pixels).logits, two(pixels).logits)
    if args:
        with pytest.raises(OptionError, match="has no chain: these models can only be merged fully"):
            hf_zipit.merge([source, load_source(b, args)], images(16, size), cut="blocks.0", tasks=["a", "b"])


def test_other_numbers_of_classes_are_alike():
    a, b = load_source(tiny("resnet18")), load_source(tiny("resnet18", num_classes=9))
    check_alike([a, b], find_spec(a))


def test_half_precision_sources_merge_into_half_precision():

    models = [tiny("resnet18", seed).half() for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(16), tasks=["a", "b"], calibrate="none")
    assert {p.dtype for p in merged.parameters()} == {torch.float16}

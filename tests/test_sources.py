import json
import shutil

import pytest
import torch

from hf_zipit.errors import SourceError, SpecError
from hf_zipit.libraries import untrained
from hf_zipit.sources import check_alike, find_spec, load
from tests.models import tiny


@pytest.fixture
def folder(digits, tmp_path):
    return shutil.copytree(digits[0], tmp_path / "model")


def test_a_folder_is_loaded_with_labels_preprocessing_and_origin(digits):
    source = load(digits[0])
    assert source.name == "digits-0-4"
    assert source.labels == ["0", "1", "2", "3", "4"]
    assert source.input_size == (3, 32, 32)
    assert source.preprocessing["mean"] == (0.5, 0.5, 0.5)
    assert len(source.origin["sha256"]) == 64
    assert "/" not in source.origin["folder"]
    assert load(source) is source


def test_a_module_is_loaded_with_the_arguments_it_was_made_with():
    assert load(tiny("cifar_resnet20")).backbone["model_args"] == {"depth": 8, "width": 1}
    assert load(tiny("resnet18"), {"layers": [2, 1, 1, 1]}).backbone["model_args"] == {"layers": [2, 1, 1, 1]}
    assert load(tiny("resnet18")).labels == [f"LABEL_{i}" for i in range(5)]


def spoil_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is no model: it has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
            "transformers cannot load an image classifier|has no model.safetensors|is damaged",
        ),
        (lambda f: spoil_config(f, architecture="resnet999"), "timm cannot build resnet999"),
        (lambda f: spoil_config(f, model_args={"wings": 2}), "timm cannot build cifar_resnet20"),
        (lambda f: spoil_config(f, model_args={"depth": 9}), "depth is 9"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"only pickled weights \(pytorch_model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x10" * 100), "is damaged"),
        (lambda f: spoil_config(f, num_classes=7), r"fc.weight has shape \[5, 64\], not \[7, 64\]"),
        (lambda f: spoil_config(f, model_args={"depth": 14}), r"layer1\.1\.conv1\.weight is missing"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(folder, spoil, message):
    spoil(folder)
    with pytest.raises(SourceError, match=message):
        load(folder)


def test_truncated_weights_are_refused(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="is damaged"):
        load(folder)


def test_what_is_neither_a_folder_nor_an_id_is_refused(folder):
    for name, message in (
        ("not a model", "neither a folder nor a Hub id"),
        ("user/does-not-exist", "cannot get user/does-not-exist from the Hub"),
        (folder / "config.json", "is a file"),
    ):
        with pytest.raises(SourceError, match=message):
            load(name)
    with pytest.raises(SourceError, match="nor a timm architecture"):
        untrained("resnet999")


def test_a_class_without_a_spec_is_refused():
    with pytest.raises(SpecError, match=r"no spec for timm\.models\.mobilenetv3"):
        find_spec(untrained("mobilenetv3_small_050"))


def test_other_numbers_of_classes_are_alike():
    a, b = load(tiny("resnet18")), load(tiny("resnet18", num_classes=9))
    check_alike([a, b], find_spec(a))


def test_half_precision_sources_merge_into_half_precision():
    import hf_zipit
    from tests.models import images

    models = [tiny("resnet18", seed).half() for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(16), tasks=["a", "b"], calibrate="none")
    assert {p.dtype for p in merged.parameters()} == {torch.float16}

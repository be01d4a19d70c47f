"""Ordinary checkpoints: they load in timm and transformers alone, and compute what the merge does."""

import shutil

import pytest
import timm
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor, pipeline

import hf_zipit
from hf_zipit.errors import OptionError, OutputError, ZipItError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from tests.helpers.models import hf_vit, images
from tests.helpers.snippets import run_snippets

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def merged(parents):
    return hf_zipit.merge(parents, images(32))


@torch.no_grad()
def raw_logits(merged):
    return torch.cat(list(merged(PIXELS).task_logits.values()), -1)


@pytest.mark.parametrize("task", [None, "birds"])
def test_timm_and_transformers_read_an_ordinary_timm_checkpoint(parents, merged, tmp_path, task):
    folder = saving.save(merged, tmp_path / "plain", library="timm", task=task)
    labels = [f"{t}-{i}" for t in ("pets", "birds") if task in (None, t) for i in range(5)]
    expected = raw_logits(merged) if task is None else merged(PIXELS).task_logits[task].detach()
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(PIXELS), expected, rtol=1e-4, atol=1e-5)
    assert model.pretrained_cfg["label_names"] == labels
    wrapped, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert list(wrapped.config.id2label.values()) == labels
    with torch.no_grad():
        torch.testing.assert_close(wrapped.eval()(PIXELS).logits, expected, rtol=1e-4, atol=1e-5)
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    first, second = hf_zipit.load_source(folder), hf_zipit.load_source(parents[0])
    assert torch.equal(first.transform(picture), second.transform(picture))
    assert not list(folder.glob("*.py"))
    assert pipeline("image-classification", model=str(folder))(picture)[0]["label"] in labels


def test_the_snippets_of_its_card_run(merged, tmp_path, monkeypatch):
    folder = saving.save(merged, tmp_path / "plain", library="timm")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 50)).save("image.jpg")
    names = run_snippets(folder)
    assert names["logits"].shape == (1, 10)
    text = (folder / "README.md").read_text()
    assert "library_name: timm" in text
    assert "raw logits side by side" in text


def test_an_ordinary_transformers_checkpoint(tmp_path, monkeypatch):
    processor = ViTImageProcessor(size={"height": 32, "width": 32})
    for seed, task in enumerate(("low", "high")):
        hf_vit(seed).save_pretrained(tmp_path / task)
        processor.save_pretrained(tmp_path / task)
    merged = hf_zipit.merge([tmp_path / "low", tmp_path / "high"], images(16))
    saved = load_merged(saving.save(merged, tmp_path / "merged"))
    folder = saving.save(saved, tmp_path / "plain", library="transformers")
    shutil.rmtree(tmp_path / "merged")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert type(model).__name__ == "ViTForImageClassification"
    with torch.no_grad():
        torch.testing.assert_close(model(PIXELS).logits, raw_logits(merged), rtol=1e-4, atol=1e-5)
    assert list(model.config.id2label.values())[5:7] == ["high/LABEL_0", "high/LABEL_1"]
    picture = Image.effect_noise((50, 40), 60).convert("RGB")
    found = AutoImageProcessor.from_pretrained(folder)(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"]))
    monkeypatch.chdir(tmp_path)
    picture.save("image.jpg")
    assert run_snippets(folder)["classify"].model.config.num_labels == 10
    with pytest.raises(OptionError, match="models of transformers; use the format transformers"):
        saving.save(merged, tmp_path / "no", library="timm")


def test_what_has_no_ordinary_form_is_refused_and_nothing_is_written(parents, merged, digits, tmp_path):
    partial = hf_zipit.merge(parents, images(16), cut="layer2")
    ours = hf_zipit.merge(digits, method="average", calibrate="none")
    for model, options, message in [
        (partial, {"library": "timm"}, "layers that each task keeps after the cut layer2; merge without a cut"),
        (merged, {"library": "transformers"}, "use the format timm; transformers reads what timm writes, too"),
        (merged, {"library": "onnx"}, "unknown format 'onnx'; formats: zipit, timm, transformers"),
        (merged, {"library": "timm", "task": "cats"}, "unknown task 'cats'; tasks: pets, birds"),
        (merged, {"task": "pets"}, "the format zipit keeps all tasks"),
        (ours, {"library": "timm"}, "timm has no such architecture, it comes with hf-zipit"),
    ]:
        with pytest.raises(ZipItError, match=message):
            saving.save(model, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_changed_widths_are_refused(merged, tmp_path):
    import copy

    wide = copy.deepcopy(merged)
    conv = wide.trunk.layer4[0].conv1
    conv.weight = torch.nn.Parameter(conv.weight.repeat(2, 1, 1, 1))
    with pytest.raises(OutputError, match=r"layer4.0.conv1.weight is \[64, 24, 3, 3\] instead of \[32, 24, 3, 3\]"):
        saving.save(wide, tmp_path / "out", library="timm")
    assert list(tmp_path.iterdir()) == []

"""Pipelines of transformers on merges of models of several classes, one task at a time."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, DPTImageProcessor, pipeline

import hf_zipit
from hf_zipit.saving import save as saving
from hf_zipit.transform.permute import randomise
from tests.helpers.models import images, tiny
from tests.helpers.snippets import run_snippets
from tests.helpers.wholes import NARROW, PAIRS, TASKS, small, unet

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A merge of a timm classifier and a segmentation model."""
    classifier = tiny("resnet18")
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, "input_size": (3, 32, 32)}
    sources = [hf_zipit.load_source(classifier, NARROW), randomise(unet().eval(), 1)]
    merged = hf_zipit.merge(sources, images(16), method="average", cut="layer2", tasks=TASKS, cache=False)
    return saving.save(merged, tmp_path_factory.mktemp("out") / "merged")


def test_image_classification(folder):
    classify = pipeline("image-classification", model=str(folder), model_kwargs={"active_task": "classes"})
    found = classify(PICTURE)
    assert {entry["label"] for entry in found} <= {f"LABEL_{i}" for i in range(5)}
    assert 0 < sum(entry["score"] for entry in found) <= 1 + 1e-5


def test_image_segmentation(folder):
    segment = pipeline("image-segmentation", model=str(folder), model_kwargs={"active_task": "maps"})
    found = segment(PICTURE, subtask="semantic")
    assert found
    assert all(entry["mask"].size == PICTURE.size for entry in found)


@pytest.fixture(scope="module")
def depth_folder(tmp_path_factory):
    """A merge of a classifier and a depth model of transformers."""
    place = tmp_path_factory.mktemp("depth")
    model = randomise(PAIRS["Depth Anything"][1]().eval(), 1)
    model.head.conv3.bias.data.fill_(5.0)  # a depth that is not cut off at 0
    model.save_pretrained(place / "depth")
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place / "depth")
    depth = hf_zipit.load_source(place / "depth")
    assert depth.kind == "depth-estimation"
    assert depth.input_size == (3, 32, 32)
    assert depth.labels == []
    sources = [small(PAIRS["Depth Anything"][0], 0), depth]
    merged = hf_zipit.merge(sources, images(16), method="average", tasks=TASKS, cache=False)
    return saving.save(merged, place / "merged")


def test_depth_estimation(depth_folder):
    estimate = pipeline("depth-estimation", model=str(depth_folder), model_kwargs={"active_task": "maps"})
    found = estimate(PICTURE)
    assert found["depth"].size == PICTURE.size
    assert torch.isfinite(found["predicted_depth"]).all()


def test_its_card_tells_what_it_is_and_its_snippet_runs(folder, monkeypatch):
    text = (folder / "README.md").read_text()
    assert "pipeline_tag" not in text  # it has several
    assert "reports each task's own metric" in text
    monkeypatch.chdir(folder.parent)
    names = run_snippets(folder)
    assert names["out"].task_outputs["classes"].logits.shape == (1, 5)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")  # the client's own
@pytest.mark.slow
def test_it_is_pushed_and_loaded_like_any_model(hub, folder, run):
    hf_zipit.push(folder, "user/mixed")
    files = hub.repos["user/mixed"].at()[1]
    assert set(files) == {path.name for path in folder.iterdir()}
    assert not [name for name in files if name.startswith("cifar_")]
    loaded = AutoModel.from_pretrained("user/mixed").eval()
    kept = AutoModel.from_pretrained(folder).eval()
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = (model(pixel_values=pixels).task_outputs for model in (loaded, kept))
    assert all(torch.equal(found[task].logits, expected[task].logits) for task in TASKS)
    loaded.push_to_hub("user/again")
    assert set(hub.repos["user/again"].at()[1]) == set(files)
    about = json.loads(run("inspect", "user/mixed", "--json")[1])
    assert [task["kind"] for task in about["tasks"]] == ["image-classification", "image-segmentation"]
    assert about["trunk"]["flops"] + sum(head["flops"] for head in about["heads"]) == about["flops"]
    code, _, err = run("export", "user/mixed", "--format", "timm", "-o", "nowhere")
    assert code == 1
    assert "an ordinary timm model has one kind of output" in err


ALONE = """
import sys
sys.modules["hf_zipit"] = None
import torch
from PIL import Image
from transformers import pipeline
torch.set_num_threads(1)
picture, found = Image.open("picture.png"), {}
for kind, folder, task in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    run = pipeline(kind, model=folder, model_kwargs={"active_task": task}, trust_remote_code=True)
    found[kind] = run(picture, **({"subtask": "semantic"} if "segmentation" in kind else {}))
torch.save(found, "out.pt")
"""


@pytest.mark.slow
def test_pipelines_run_in_a_new_process_without_hf_zipit(folder, depth_folder, tmp_path):
    """The package is hidden: the code files in the folders are all there is."""
    PICTURE.save(tmp_path / "picture.png")
    runs = {
        "image-classification": (folder, "classes"),
        "image-segmentation": (folder, "maps"),
        "depth-estimation": (depth_folder, "maps"),
    }
    command = [sys.executable, "-c", ALONE, *(str(x) for kind, of in runs.items() for x in (kind, *of))]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True, timeout=300)
    found = torch.load(tmp_path / "out.pt", weights_only=False)
    for kind, (place, task) in runs.items():
        here = pipeline(kind, model=str(place), model_kwargs={"active_task": task})
        expected = here(PICTURE, **({"subtask": "semantic"} if "segmentation" in kind else {}))
        if kind == "image-classification":
            assert [entry["label"] for entry in found[kind]] == [entry["label"] for entry in expected]
            assert [e["score"] for e in found[kind]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        elif kind == "image-segmentation":
            masks = [[np.asarray(entry["mask"]) for entry in entries] for entries in (found[kind], expected)]
            assert all(np.mean(a != b) < 0.01 for a, b in zip(*masks, strict=True))
        else:
            torch.testing.assert_close(found[kind]["predicted_depth"], expected["predicted_depth"])

"""Merges of detectors: saved, loaded anywhere, one task in a pipeline, and all tasks at once."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForObjectDetection, pipeline

import hf_zipit
from hf_zipit.sources.load import load_source
from tests.helpers.detectors import NAMES, PICTURES, object_data, save_detector
from tests.helpers.models import images
from tests.helpers.snippets import run_snippets

PICTURE = PICTURES[0]
ALONE = """
import sys
sys.modules["hf_zipit"] = None
import torch
from PIL import Image
from transformers import AutoModelForObjectDetection, pipeline
torch.set_num_threads(1)
picture, folder = Image.open("picture.png"), sys.argv[1]
arguments = {"trust_remote_code": True}
run = pipeline("object-detection", model=folder, model_kwargs={"active_task": "b"}, threshold=0.0, **arguments)
model = AutoModelForObjectDetection.from_pretrained(folder, **arguments).eval()
torch.save((run(picture), model.detect(picture, threshold=0.0)), "out.pt")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two detectors and the merge of them that keeps the trunk of the second."""
    folder = tmp_path_factory.mktemp("detectors")
    folders = [save_detector(folder, name, seed) for seed, name in enumerate("ab")]
    merged = hf_zipit.merge(folders, images(8), method="last-parent", calibrate="none", cache=False, verdict=False)
    hf_zipit.save(merged, folder / "merged")
    return folder


def alone(folder, threshold=0.0):
    """What the pipeline finds with a parent itself."""
    return pipeline("object-detection", model=str(folder), threshold=threshold)(PICTURE)


def same(found, expected):
    key = lambda one: (-one["score"], one["label"])  # noqa: E731
    pairs = list(zip(sorted(found, key=key), sorted(expected, key=key), strict=True))
    assert [a["label"] for a, _ in pairs] == [b["label"] for _, b in pairs]
    assert [a["score"] for a, _ in pairs] == pytest.approx([b["score"] for _, b in pairs], abs=1e-5)
    assert all(abs(a["box"][side] - b["box"][side]) <= 1 for a, b in pairs for side in a["box"])


def test_one_task_in_a_pipeline_finds_what_its_parent_does(place):
    run = pipeline("object-detection", model=str(place / "merged"), model_kwargs={"active_task": "b"}, threshold=0.0)
    found = run(PICTURE)
    assert len(found) == 5
    same(found, alone(place / "b"))


def test_the_boxes_of_all_tasks_are_those_of_each(place):
    model = AutoModelForObjectDetection.from_pretrained(place / "merged").eval()
    both, again = model.detect([PICTURE, PICTURES[1]], threshold=0.0)
    assert len(both) == len(again) == 10
    assert [one["score"] for one in both] == sorted((one["score"] for one in both), reverse=True)
    mine = [{**one, "label": one["label"].removeprefix("b/")} for one in both if one["task"] == "b"]
    same(mine, alone(place / "b"))
    assert {one["label"] for one in both} <= {f"{task}/{name}" for task, names in NAMES.items() for name in names}
    only = model.detect(PICTURE, threshold=0.0, tasks="a")[0]
    assert [one for one in both if one["task"] == "a"] == only
    assert len(model.detect(PICTURE, threshold=0.0, suppress=0.0)[0]) <= len(both)
    limit = sorted(one["score"] for one in both)[5]
    assert len(model.detect(PICTURE, threshold=limit)[0]) == 4


def test_they_are_found_in_a_new_process_without_hf_zipit(place, tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    command = [sys.executable, "-c", ALONE, str(place / "merged")]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(command, check=True, cwd=tmp_path, env=env, capture_output=True, timeout=300)
    found, both = torch.load(tmp_path / "out.pt", weights_only=False)
    same(found, alone(place / "b"))
    model = AutoModelForObjectDetection.from_pretrained(place / "merged").eval()
    same(both[0], model.detect(PICTURE, threshold=0.0)[0])


def test_its_card_tells_that_it_detects_and_its_snippet_runs(place, monkeypatch):
    text = (place / "merged" / "README.md").read_text()
    assert "pipeline_tag: object-detection" in text
    monkeypatch.chdir(place)
    assert run_snippets(place / "merged")["out"].task_outputs["a"].pred_boxes.shape == (1, 5, 4)


@pytest.mark.slow
def test_its_recipe_makes_it_again(place, tmp_path):
    """With the spec beside it, which describes the first layers of a detector only."""
    (tmp_path / "data").mkdir()
    object_data([[([1, 1, 9, 9], "cat")]] * 8, ["cat"]).to_parquet(str(tmp_path / "data" / "train.parquet"))
    merged = hf_zipit.merge([place / "a", place / "b"], tmp_path / "data", cache=False)
    hf_zipit.save(merged, tmp_path / "merged")
    again = hf_zipit.merge_recipe(tmp_path / "merged" / "zipit_config.yml")
    assert again.spec_text == merged.spec_text
    kept = merged.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in again.state_dict().items())


def test_only_detectors_find_boxes_and_need_an_image_processor(place):
    model = AutoModelForObjectDetection.from_pretrained(place / "merged").eval()
    with pytest.raises(ValueError, match="unknown task 'c'"):
        model.detect(PICTURE, tasks="c")
    sources = [load_source(place / name) for name in "ab"]
    bare = hf_zipit.merge([one.model for one in sources], images(4), method="average", calibrate="none", cache=False)
    with pytest.raises(ValueError, match="no image processor is saved beside the merge"):
        bare.detect(PICTURE)
    assert len(bare.detect(PICTURE, threshold=0.0, processor=sources[0].processor)[0]) == 10

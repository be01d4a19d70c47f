"""Mean average precision, against cases counted by hand, and of merges beside their parents."""

import builtins

import pytest
import torch

import hf_zipit
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.detection import average_precisions, open_box_targets
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from tests.helpers.detectors import NAMES, PICTURES, object_data, save_detector, source
from tests.helpers.models import images

HEAD = {"task": "pets", "kind": "object-detection", "id2label": {0: "cat", 1: "dog"}}


def found(*rows):
    """Boxes that were found: score, class, left, top, width, height."""
    rows = torch.tensor(rows).reshape(-1, 6)
    corners = torch.cat([rows[:, 2:4], rows[:, 2:4] + rows[:, 4:]], 1)
    return {"scores": rows[:, 0], "labels": rows[:, 1].long(), "boxes": corners}


@pytest.fixture
def targets():
    """A cat in each of two images, a dog in the first, and a cow, which is none of the classes."""
    there = [
        [([0, 0, 10, 10], "cat"), ([20, 20, 10, 10], "dog"), ([0, 20, 10, 10], "cow")],
        [([0, 0, 10, 10], "cat")],
    ]
    return open_box_targets(object_data(there, ["cow", "dog", "cat"]), HEAD, processor=object())


def test_average_precision_counted_by_hand(targets):
    """One of two cats is found: precision 1 at 51 of 101 recalls. The dog is found with an overlap of 0.77."""
    guesses = [
        found((0.9, 0, 0.0, 0.0, 10.0, 10.0), (0.7, 1, 20.0, 20.0, 10.0, 7.7)),
        found((0.8, 0, 20.0, 20.0, 10.0, 10.0)),
    ]
    values = average_precisions(guesses, targets)
    cats = 51 / 101
    assert values["mAP50"] == pytest.approx((cats + 1) / 2)
    assert values["mAP75"] == pytest.approx((cats + 1) / 2)
    assert values["mAP"] == pytest.approx((cats + 6 / 10) / 2)


def test_nothing_found_and_all_found(targets):
    assert average_precisions([found(), found()], targets) == {"mAP": 0, "mAP50": 0, "mAP75": 0}
    right = [
        found((0.9, 0, 0.0, 0.0, 10.0, 10.0), (0.7, 1, 20.0, 20.0, 10.0, 10.0)),
        found((0.8, 0, 0.0, 0.0, 10.0, 10.0)),
    ]
    assert average_precisions(right, targets) == pytest.approx({"mAP": 1, "mAP50": 1, "mAP75": 1})


def test_objects_of_other_classes_are_left_out_and_counted(targets, caplog):
    assert targets.classes == {1: 1, 2: 0}
    open_box_targets(object_data([[([0, 0, 9, 9], "cow"), ([0, 0, 9, 9], "cat")]], ["cow", "cat"]), HEAD, object())
    assert "1 of 2 objects are of no class of the task, and left out" in caplog.text


def test_data_without_an_object_of_the_task_is_refused():
    with pytest.raises(DataError, match="no object is of a class of the task"):
        open_box_targets(object_data([[([0, 0, 9, 9], "cow")]], ["cow", "cat"]), HEAD, object())


def test_without_pycocotools_the_message_names_the_extra(targets, monkeypatch):
    real = builtins.__import__

    def hide(name, *rest, **more):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", hide)
    with pytest.raises(OptionError, match=r"hf-zipit\[detection\]"):
        average_precisions([found(), found()], targets)


@pytest.fixture(scope="module")
def merged_of(tmp_path_factory):
    """A merge that keeps the trunk of the first of two detectors, its parents, and what the first finds as truth."""
    place = tmp_path_factory.mktemp("detectors")
    folders = [save_detector(place, name, seed) for seed, name in enumerate("ab")]
    merged = hf_zipit.merge(folders, images(8), method="first-parent", calibrate="none", cache=False, verdict=False)
    hf_zipit.save(merged, place / "merged")
    opened = load_source(folders[0])
    truth = []
    for picture in PICTURES:
        with torch.no_grad():
            output = opened.model(**opened.processor(images=picture, return_tensors="pt"))
        size = torch.tensor([[picture.height, picture.width]])
        best = opened.processor.post_process_object_detection(output, threshold=0, target_sizes=size)[0]
        first = int(best["scores"].argmax())
        x, y, right, bottom = best["boxes"][first].tolist()
        truth.append([([x, y, right - x, bottom - y], NAMES["a"][int(best["labels"][first])])])
    other = [[([1, 1, 20, 20], "car")] for _ in PICTURES]
    return place, folders, [object_data(truth, NAMES["a"]), object_data(other, NAMES["b"])]


def test_merge_parents_and_ensemble_are_measured_on_the_boxes_of_each_task(merged_of):
    place, folders, data = merged_of
    rows = evaluate(load_merged(place / "merged"), data, parents=folders)
    merged, first, second, ensemble = rows
    assert set(merged.scores["a"]) == {"mAP", "mAP50"}
    assert first.scores["a"]["mAP"] > 0.2
    assert merged.scores["a"] == first.scores["a"]  # its trunk is kept
    assert ensemble.scores == {"a": first.scores["a"], "b": second.scores["b"]}


def test_the_command_prints_them(merged_of, run, tmp_path):
    place, _, data = merged_of
    for name, part in zip("ab", data, strict=True):
        (tmp_path / name).mkdir()
        part.to_parquet(str(tmp_path / name / "test.parquet"))
    code, printed, error = run("eval", place / "merged", "--data", tmp_path / "a", "--data", tmp_path / "b")
    assert code == 0, error
    header = printed.splitlines()[0]
    assert all(part in header for part in ("a: mAP", "a: mAP50", "b: mAP", "b: mAP50"))


def test_detectors_without_an_image_processor_cannot_be_measured():
    merged = hf_zipit.merge([source("YOLOS", 0), source("YOLOS", 1)], images(4), method="average", cache=False)
    data = object_data([[([0, 0, 9, 9], "cat")]], ["cat"])
    with pytest.raises(DataError, match="have no image processor"):
        evaluate(merged, data)

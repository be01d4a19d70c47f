"""The boxes of all tasks in one list."""

import pytest
import torch

from hf_zipit.models.boxes import joint_boxes, overlaps

NAMES = {"a": {0: "cat", 1: "dog"}, "b": {0: "cat"}}


def boxes(*rows):
    """Score, label and corners of each box."""
    scores, labels, corners = zip(*rows, strict=True)
    return {"scores": torch.tensor(scores), "labels": torch.tensor(labels), "boxes": torch.tensor(corners).float()}


FOUND = {
    "a": boxes((0.5, 1, (0, 0, 10, 10)), (0.4, 0, (0, 0, 10, 9))),
    "b": boxes((0.9, 0, (0, 1, 10, 10)), (0.3, 0, (50.7, 0, 60, 10))),
}


def test_boxes_of_all_tasks_are_sorted_by_their_scores_and_named_by_task():
    found = joint_boxes(FOUND, NAMES)
    assert [one["label"] for one in found] == ["b/cat", "a/dog", "a/cat", "b/cat"]
    assert [one["score"] for one in found] == pytest.approx([0.9, 0.5, 0.4, 0.3])
    assert found[3] == {**found[3], "task": "b", "box": {"xmin": 50, "ymin": 0, "xmax": 60, "ymax": 10}}


def test_a_box_gives_way_only_to_a_surer_one_of_another_task():
    assert [one["label"] for one in joint_boxes(FOUND, NAMES, suppress=0.85)] == ["b/cat", "a/cat", "b/cat"]
    assert [one["label"] for one in joint_boxes(FOUND, NAMES, suppress=0.75)] == ["b/cat", "b/cat"]
    assert len(joint_boxes(FOUND, NAMES, suppress=0.95)) == 4
    alone = {"a": FOUND["a"]}
    assert len(joint_boxes(alone, NAMES, suppress=0.1)) == 2


def test_overlap_is_intersection_over_union():
    one = torch.tensor([0.0, 0.0, 4.0, 4.0])
    others = [torch.tensor(corners) for corners in ([2.0, 0.0, 6.0, 4.0], [5.0, 5.0, 6.0, 6.0], [1.0, 1.0, 1.0, 3.0])]
    assert overlaps(one, others).tolist() == pytest.approx([8 / 24, 0, 0])

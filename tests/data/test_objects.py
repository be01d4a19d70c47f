"""Images with objects, as detection data sets hold them."""

import datasets
import pytest

from hf_zipit.data.objects import open_objects
from hf_zipit.errors import DataError
from tests.helpers.detectors import PICTURES, object_data

BOXES = [[([1, 2, 10, 20], "cat"), ([0, 0, 5, 5], "dog")], []]


def test_boxes_and_categories_of_every_image():
    opened = open_objects(object_data(BOXES, ["dog", "cat"]))
    assert opened.objects[0].boxes.tolist() == [[1, 2, 10, 20], [0, 0, 5, 5]]
    assert opened.objects[0].categories == [1, 0]
    assert opened.objects[0].crowd == [False, False]
    assert opened.objects[1].boxes.shape == (0, 4)
    assert opened.labels.classes == ["dog", "cat"]
    assert opened.image(1).size == PICTURES[1].size


def test_a_list_of_objects_with_crowds_and_texts_in_a_column_of_another_name():
    rows = [{"bbox": [1.0, 2.0, 3.0, 4.0], "category": "cat", "iscrowd": 1, "area": 12.0}]
    data = datasets.Dataset.from_dict({"image": PICTURES[:1], "things": [rows]}).cast_column("image", datasets.Image())
    opened = open_objects(data, label_column="things")
    assert opened.objects[0].crowd == [True]
    assert opened.labels.classes == ["cat"]


def test_the_fingerprint_tells_other_boxes():
    marks = [open_objects(object_data([[([x, 2, 10, 20], "cat")]], ["cat"])).fingerprint() for x in (1, 1, 2)]
    assert marks[0] == marks[1] != marks[2]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"bbox": [[1, 2, 3]], "category": [0]}, "is no box: left, top, width and height"),
        ({"bbox": [[1, 2, -3, 4]], "category": [0]}, "is no box: left, top, width and height"),
        ({"bbox": [[1, 2, 3, 4]], "category": [0, 1]}, "1 boxes and 2 categories"),
        ({"boxes": [[1, 2, 3, 4]], "category": [0]}, "'bbox' and 'category' are needed"),
    ],
)
def test_what_is_no_box_is_named(objects, message):
    data = datasets.Dataset.from_dict({"image": PICTURES[:1], "objects": [objects]})
    with pytest.raises(DataError, match=message):
        open_objects(data.cast_column("image", datasets.Image()))


def test_a_missing_column_is_named():
    data = datasets.Dataset.from_dict({"image": PICTURES[:1]}).cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=r"has no column 'objects' of boxes; its columns: image.*--label-column"):
        open_objects(data)

import datasets
import pytest
import torch
from PIL import Image

from hf_zipit.data.images import open_images
from hf_zipit.errors import DataError, OptionError
from tests.data.test_images import pixel


def data(**columns):
    features = {"image": datasets.Image()}
    count = len(next(iter(columns.values()))[0])
    values = {"image": [Image.new("L", (2, 2), i) for i in range(count)]}
    for name, (column, feature) in columns.items():
        features[name] = feature
        values[name] = column
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def test_every_column_of_classes_is_a_candidate():
    fine = ([0, 1, 2], datasets.ClassLabel(names=["a", "b", "c"]))
    coarse = ([0, 0, 1], datasets.ClassLabel(names=["x", "y"]))
    images = open_images(data(fine=fine, coarse=coarse), pixel)
    assert [labels.column for labels in images.labels] == ["fine", "coarse"]
    (chosen,) = open_images(data(fine=fine, coarse=coarse), pixel, label_column="coarse").labels
    assert chosen.names == ["x", "y"]
    assert chosen.values == [0, 0, 1]


def test_an_unknown_column_is_refused():
    with pytest.raises(OptionError, match="has no column 'kind' of labels; its columns: image, label"):
        open_images(data(label=([0], datasets.Value("int64"))), pixel, label_column="kind")


def test_texts_are_classes():
    (labels,) = open_images(data(label=(["dog", "cat", ""], datasets.Value("string"))), pixel).labels
    assert labels.names is None
    assert labels.classes == ["cat", "dog"]
    assert labels.values == ["dog", "cat", None]
    assert labels.count() == 2


def test_lists_are_several_labels():
    names = datasets.List(datasets.ClassLabel(names=["a", "b"]))
    (labels,) = open_images(data(tags=([[0], [0, 1], []], names)), pixel).labels
    assert labels.several
    assert labels.names == ["a", "b"]


def test_labels_of_batches_are_one_per_image():
    pixels = torch.zeros(3, 3, 2, 2)
    (labels,) = open_images([(pixels, torch.eye(3))], None).labels
    assert labels.values[1] == [0, 1, 0]
    (labels,) = open_images([(pixels, ["a", "b", None])], None).labels
    assert labels.values == ["a", "b", None]
    with pytest.raises(DataError, match="a batch of 3 images has 2 labels"):
        open_images([(pixels, torch.zeros(2))], None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused(value):
    with pytest.raises(DataError, match="holds values that are NaN or infinite"):
        open_images([torch.full((1, 3, 2, 2), value)], None)


def test_batches_of_different_sizes_are_refused():
    with pytest.raises(DataError, match=r"images of the shapes \(3, 2, 2\) and \(3, 4, 4\)"):
        open_images([torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4)], None)


def test_a_column_of_images_holds_no_labels():
    masks = ([Image.new("L", (2, 2))], datasets.Image())
    rows = data(label=masks)
    assert open_images(rows, pixel).labels == ()
    with pytest.raises(OptionError, match="has no column 'label' of labels"):
        open_images(rows, pixel, label_column="label")

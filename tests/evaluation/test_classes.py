"""Which images count for a task: names, numbers and texts held against the classes of the model."""

import pytest

from hf_zipit.data.dataset import Images
from hf_zipit.data.labels import Labels
from hf_zipit.errors import DataError
from hf_zipit.evaluation.classes import find_target


def images(*columns):
    return Images(lambda i: None, len(columns[0].values), "data", lambda: "", columns)


def labels(values, names=None, column="label"):
    return Labels(column, values, names)


def head(*names, **more):
    return {"task": "t", "id2label": dict(enumerate(names)), **more}


def counted(target):
    return dict(zip(target.index.tolist(), target.values.tolist(), strict=True))


def test_names_in_another_order_and_unlabelled_images():
    column = labels([0, 1, 2, -1, None, 7], ["dog", "fox", "cat"])
    assert counted(find_target(images(column), head("cat", "dog"))) == {0: 1, 2: 0}


def test_classes_that_the_data_lack_are_told(caplog):
    find_target(images(labels([0], ["dog"])), head("cat", "dog", "elk"))
    assert "2 of 3 classes are not in the data set (cat, elk); only the others are measured" in caplog.text


def test_texts_are_matched_by_name():
    assert counted(find_target(images(labels(["dog", None, "cow", "cat"])), head("cat", "dog"))) == {0: 1, 3: 0}


def test_texts_for_a_model_without_names_are_refused():
    with pytest.raises(DataError, match=r"the labels are texts \(cat, dog\), and the model has no class names"):
        find_target(images(labels(["dog", "cat"])), head("LABEL_0", "LABEL_1"))


def test_a_name_of_two_classes_is_refused_unless_both_sides_agree():
    twice = ["crane", "fox", "crane"]
    assert counted(find_target(images(labels([0, 2], twice)), head(*twice))) == {0: 0, 1: 2}
    for data, model in ((twice, ["fox", "crane"]), (["fox", "crane"], twice)):
        with pytest.raises(DataError, match="'crane' is the name of several classes"):
            find_target(images(labels([0, 1], data)), head(*model))
    assert counted(find_target(images(labels([0, 1], ["fox", "owl"])), head(*twice))) == {0: 1}


def test_of_several_columns_the_one_with_the_classes_is_taken():
    fine = labels([0, 1], ["cat", "dog"], "fine")
    coarse = labels([0, 0], ["animal"], "coarse")
    assert counted(find_target(images(coarse, fine), head("dog", "cat"))) == {0: 1, 1: 0}
    with pytest.raises(DataError, match=r"several columns of labels for task .*: coarse \(animal\), fine \(cat, dog\)"):
        find_target(images(coarse, fine), head("bus"))
    other = labels([0, 1], ["dog", "cat"], "other")
    with pytest.raises(DataError, match="name another column with label_column"):
        find_target(images(fine, other), head("dog", "cat"))


def test_data_without_labels_are_refused():
    for found in (images(labels([None])), Images(lambda i: None, 1, "data", lambda: "")):
        with pytest.raises(DataError, match="data has no label column with labels in it"):
            find_target(found, head("cat"))
    with pytest.raises(DataError, match="no image has a label that belongs to the task"):
        find_target(images(labels([-1, -1], ["cat", "dog"])), head("cat", "dog"))


def test_one_logit(caplog):
    binary = {"problem": "binary"}
    assert counted(find_target(images(labels([1, 0, -1])), head("LABEL_0", **binary))) == {0: 1, 1: 0}
    two = labels([0, 1], ["defect", "good"])
    assert counted(find_target(images(two), head("defect", **binary))) == {0: 1, 1: 0}
    assert not caplog.text
    assert counted(find_target(images(two), head("LABEL_0", **binary))) == {0: 0, 1: 1}
    assert "'LABEL_0' is no class of the data; a positive logit is taken as 'good'" in caplog.text
    assert counted(find_target(images(labels(["no", "yes"])), head("yes", **binary))) == {0: 0, 1: 1}
    with pytest.raises(DataError, match="one logit, for one class against all others, and the data set has 3 classes"):
        find_target(images(labels([0], ["a", "b", "c"])), head("a", **binary))


def test_several_labels():
    many = {"problem": "multi-label"}
    hot = find_target(images(labels([[1.0, 0.0], None, [0, -1]])), head("a", "b", **many))
    assert hot.index.tolist() == [0, 2]
    assert hot.values[0].tolist() == [1, 0]
    assert hot.values[1].isnan().tolist() == [False, True]
    listed = find_target(images(labels([[2, 1], []], ["c", "b", "a"])), head("a", "b", **many))
    assert listed.values.tolist() == [[1, 1], [0, 0]]
    texts = find_target(images(labels([["b"], ["a", "x"]])), head("a", "b", **many))
    assert texts.values.tolist() == [[0, 1], [1, 0]]
    single = find_target(images(labels([1, 0], ["a", "b"])), head("a", "b", **many))
    assert single.values.tolist() == [[0, 1], [1, 0]]
    for odd in ([0.9, 0.1], [1, 0, 0], [1, 1]):
        with pytest.raises(DataError, match="are neither zeros and ones for 2 classes, nor different classes"):
            find_target(images(labels([odd, [0, 7, 9]])), head("LABEL_0", "LABEL_1", **many))
    with pytest.raises(DataError, match=r"the labels are 1 and -1; give 0 to classes that are absent"):
        find_target(images(labels([[1, -1], [-1, 1]])), head("a", "b", **many))
    with pytest.raises(DataError, match=r"the labels \[7\] of image 0 are neither zeros and ones for 2 classes"):
        find_target(images(labels([[7]])), head("LABEL_0", "LABEL_1", **many))


def test_several_labels_for_a_model_of_one_class_are_told(caplog):
    target = find_target(images(labels([[1, 0, 0], [1, 1, 0]])), head("a", "b", "c"))
    assert target.problem == "multi-label"
    assert "the images have several labels in 'label': task 't' is measured as multi-label" in caplog.text


def test_quantities():
    regression = {"problem": "regression"}
    found = find_target(images(labels([0.5, None, -1])), head("LABEL_0", **regression))
    assert found.index.tolist() == [0, 2]
    assert found.values.tolist() == [[0.5], [-1]]
    assert find_target(images(labels([[1, 2]])), head("x", "y", **regression)).values.tolist() == [[1, 2]]
    with pytest.raises(DataError, match="the label of image 0 is 'old'; 1 numbers are needed"):
        find_target(images(labels(["old"])), head("age", **regression))


@pytest.mark.parametrize("value", [{"a": 1}, [[1], [2]], object])
def test_labels_of_other_forms_are_refused(value):
    with pytest.raises(DataError, match="the label of image 0 in 'label' is"):
        find_target(images(labels([value])), head("a", "b"))

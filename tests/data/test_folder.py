"""A local folder is read as the files that are there: nothing is left out without a word."""

import os

import datasets
import pytest
from PIL import Image

from hf_zipit.data.images import open_images
from hf_zipit.data.rows import TEST
from hf_zipit.errors import DataError, OptionError
from tests.data.test_images import pixel, rows


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)


def classes(root, names, per=2):
    for name in names:
        for i in range(per):
            picture(root / name / f"{i}.png")
    return root


def counted(images):
    (labels,) = images.labels
    found = [labels.names[value] for value in labels.values]
    return {name: found.count(name) for name in found}


def test_a_class_called_train_is_a_class(tmp_path):
    images = open_images(classes(tmp_path / "vehicles", ["bus", "car", "train"]), pixel)
    assert counted(images) == {"bus": 2, "car": 2, "train": 2}


@pytest.mark.parametrize("name", ["test-0.png", "val.png", "train_12.png", "eval 3.png"])
def test_a_file_named_like_a_split_is_an_image_among_the_others(tmp_path, name):
    picture(classes(tmp_path / "plates", ["cat", "dog"]) / "cat" / name)
    assert counted(open_images(tmp_path / "plates", pixel)) == {"cat": 3, "dog": 2}


def test_folders_at_the_top_are_splits_if_all_are_named_so(tmp_path):
    classes(tmp_path / "train", ["cat", "dog"])
    classes(tmp_path / "val", ["cat", "test"], per=1)
    assert counted(open_images(tmp_path, pixel)) == {"cat": 2, "dog": 2}
    assert counted(open_images(tmp_path, pixel, splits=TEST)) == {"cat": 1, "test": 1}
    assert len(open_images(f"{tmp_path}:validation", pixel)) == 2


def test_a_split_beside_other_images_is_refused(tmp_path):
    classes(tmp_path / "train", ["cat", "dog"])
    classes(tmp_path, ["extra"])
    with pytest.raises(DataError, match=r"'train' looks like a split, but images lie outside .*name the folder"):
        open_images(tmp_path, pixel)


@pytest.mark.parametrize("name", ["a[1]b", "what?*", "[old] {x}", "ünï çode", "a:b", "$HOME", "~"])
def test_a_path_with_wildcards_is_a_path(tmp_path, name):
    classes(tmp_path / "a1b", ["wrong"])
    images = open_images(classes(tmp_path / name, ["cat", "dog"]), pixel)
    assert counted(images) == {"cat": 2, "dog": 2}
    file = tmp_path / name / "x[0].parquet"
    rows(3).to_parquet(str(file))
    if name == "$HOME":
        with pytest.raises(DataError, match="holds the name of an environment variable"):
            open_images(file, pixel)
    else:
        assert len(open_images(file, pixel)) == 3


def test_a_folder_of_one_class_has_labels(tmp_path):
    assert counted(open_images(classes(tmp_path, ["cat"]), pixel)) == {"cat": 2}


def test_images_without_folders_have_no_labels(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    assert open_images(tmp_path, pixel).labels == ()


def test_links_to_folders_are_followed(tmp_path):
    classes(tmp_path / "elsewhere", ["dog"])
    classes(tmp_path / "data", ["cat"])
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data")
    assert counted(open_images(tmp_path / "data", pixel)) == {"cat": 2, "dog": 2}


def test_hidden_files_are_no_images(tmp_path):
    picture(classes(tmp_path, ["cat", "dog"]) / "cat" / "._0.png")
    assert len(open_images(tmp_path, pixel)) == 4


def test_images_that_a_metadata_file_leaves_out_are_told(tmp_path, caplog):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    lines = ('{"file_name": "a.png", "label": "cat"}', '{"file_name": "b.png", "label": "dog"}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    images = open_images(tmp_path, pixel)
    assert len(images) == 2
    assert "2 of 3 images are read, the others are left out; metadata.jsonl does not list them" in caplog.text


def test_metadata_that_have_changed_are_read_anew(tmp_path):
    picture(tmp_path / "a.png")
    file = tmp_path / "metadata.jsonl"
    for label in ("cat", "dog"):
        file.write_text(f'{{"file_name": "a.png", "label": "{label}"}}\n')
        os.utime(file, (1e9, 1e9))
        assert open_images(tmp_path, pixel).labels[0].values == [label]


def test_a_parquet_file_that_has_changed_is_read_anew(tmp_path):
    file = tmp_path / "x.parquet"
    for value in ("a", "b"):
        rows(2).add_column("word", [value] * 2).to_parquet(str(file))
        os.utime(file, (1e9, 1e9))
        assert open_images(file, pixel, label_column="word").labels[0].values == [value] * 2


def test_parquet_files_of_which_some_are_splits_are_refused(tmp_path):
    for name in ("train-00000-of-00001", "more"):
        rows(2).to_parquet(str(tmp_path / f"{name}.parquet"))
    with pytest.raises(DataError, match=r"train-.* is named like a split and more.parquet is not"):
        open_images(tmp_path, pixel)


def test_parquet_files_without_splits_are_all_read(tmp_path):
    for name in ("a", "b"):
        rows(2).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert len(open_images(tmp_path, pixel)) == 4


def test_images_beside_parquet_files_are_told(tmp_path, caplog):
    rows(2).to_parquet(str(tmp_path / "a.parquet"))
    picture(tmp_path / "cat" / "0.png")
    assert len(open_images(tmp_path, pixel)) == 2
    assert "1 image files beside the parquet files are left out" in caplog.text


def test_rows_that_a_readme_leaves_out_are_told(tmp_path, caplog):
    for name in ("a", "b"):
        rows(2).to_parquet(str(tmp_path / f"{name}.parquet"))
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.parquet\n---\n")
    assert len(open_images(tmp_path, pixel)) == 2
    assert "README.md states splits with 2 of its 4 rows; the others are left out" in caplog.text


def test_a_saved_data_set(tmp_path):
    rows(3).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows(3), test=rows(2)).save_to_disk(tmp_path / "two")
    assert len(open_images(tmp_path / "one", pixel)) == 3
    assert len(open_images(tmp_path / "two", pixel, splits=TEST)) == 2
    with pytest.raises(OptionError, match="is one data set without splits; leave out ':test'"):
        open_images(f"{tmp_path / 'one'}:test", pixel)


def test_a_path_through_a_link_is_what_the_system_means(tmp_path):
    classes(tmp_path / "far" / "data", ["cat", "dog"])
    classes(tmp_path / "data", ["wrong"])
    (tmp_path / "far" / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "deep")
    assert counted(open_images(f"{tmp_path}/link/../data", pixel)) == {"cat": 2, "dog": 2}


def test_a_clone_with_a_readme_that_has_changed_is_read_anew(tmp_path):
    file = tmp_path / "a.parquet"
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: a.parquet\n---\n")
    for value in ("a", "b"):
        rows(2).add_column("word", [value] * 2).to_parquet(str(file))
        os.utime(file, (1e9, 1e9))
        assert open_images(tmp_path, pixel, label_column="word").labels[0].values == [value] * 2

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from hf_zipit.data.batches import batch_sizes, batches, make_accelerator
from hf_zipit.data.images import open_all, open_images
from hf_zipit.data.rows import TEST
from hf_zipit.errors import DataError, OptionError, ZipItError


def pixel(image):
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 255


def rows(count, size=4, column="image"):
    features = datasets.Features({column: datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.new("L", (size, size), i) for i in range(count)]
    return datasets.Dataset.from_dict({column: images, "label": [i % 2 for i in range(count)]}, features=features)


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        rows(count).to_parquet(str(tmp_path / f"{split}.parquet"))
    return tmp_path


def test_a_folder_of_parquet_files_by_split(folder):
    assert len(open_images(folder, pixel)) == 6
    assert len(open_images(str(folder), pixel, splits=TEST)) == 4
    assert len(open_images(f"{folder}:test", pixel)) == 4
    images = open_images(folder / "test.parquet", pixel)
    assert len(images) == 4
    (labels,) = images.labels
    assert labels.names == ["a", "b"]
    assert labels.values == [0, 1, 0, 1]
    assert images[3].shape == (3, 4, 4)
    assert images[3].max() == pytest.approx(3 / 255)


def test_an_image_folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (5, 5)).save(tmp_path / "train" / name / f"{i}.png")
    images = open_images(tmp_path, pixel)
    assert len(images) == 6
    (labels,) = images.labels
    assert labels.names == ["cat", "dog"]
    assert sorted(labels.values) == [0, 0, 0, 1, 1, 1]


def test_datasets_and_batches_of_every_kind():
    assert len(open_images(rows(5), pixel)) == 5
    assert len(open_images(datasets.DatasetDict(train=rows(5), test=rows(2)), pixel, splits=TEST)) == 2
    x = torch.randn(7, 3, 4, 4)
    for data in ([x[:4], x[4:]], [(x, torch.arange(7))], [{"pixel_values": x, "labels": torch.arange(7)}]):
        images = open_images(data, None)
        assert len(images) == 7
        assert torch.equal(torch.stack([images[i] for i in range(7)]), x)
    loader = DataLoader(TensorDataset(x, torch.arange(7)), batch_size=2)
    assert open_images(loader, None, num_images=3).labels[0].values == [0, 1, 2]
    assert len(open_images((b for b in x.split(2)), None)) == 7


def test_one_data_set_for_all_or_one_for_each():
    x = torch.randn(4, 3, 4, 4)
    assert len(open_all([x, x], 2, None)) == 1
    assert [len(p) for p in open_all([[x, x], [x]], 2, None)] == [8, 4]
    assert [len(p) for p in open_all([DataLoader(x), DataLoader(x[:1])], 2, None)] == [4, 1]
    with pytest.raises(OptionError, match="3 data sets for 2 models"):
        open_all([DataLoader(x)] * 3, 2, None)
    with pytest.raises(DataError, match="different shapes"):
        open_all([[x], [x[..., :2]]], 2, None)
    with pytest.raises(OptionError, match="no data"):
        open_all(None, 2, None)


def test_a_seeded_subset(folder):
    def chosen(seed):
        images = open_images(folder, pixel, num_images=4, seed=seed)
        return [round(images[i].max().item() * 255) for i in range(4)]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert len(set(chosen(0))) == 4


def test_every_batch_mixes_the_data_sets_in_proportion():
    parts = open_all([[torch.zeros(30, 3, 2, 2)], [torch.ones(10, 3, 2, 2)]], 2, None)
    seen = [task.tolist() for _, task, _ in batches(parts, batch_sizes(40, 8), make_accelerator())]
    assert [sum(s) for s in seen] == [2] * 5
    assert sum(map(len, seen)) == 40


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nothing" / "at" / "all", "no data at .*nothing"),
        (lambda d: (d / "empty").mkdir() or d / "empty", "holds neither images nor parquet files"),
        (lambda d: "user/does-not-exist", "user/does-not-exist: it is neither a path nor cached, and HF_HUB_OFFLINE is set; unset"),
        (lambda d: f"{d}:validation", "has no split 'validation'; it has train, test"),
        (
            lambda d: rows(3).remove_columns("image"),
            r"has 0 image columns and needs exactly one; its columns: label \(ClassLabel",
        ),
        (lambda d: rows(3).select([]), "there are no images"),
        (lambda d: [], "there are no images"),
        (lambda d: [torch.zeros(3, 4)], r"shape \(3, 4\)"),
        (lambda d: [torch.zeros(1, 3, 4, 4, dtype=torch.uint8)], r"is torch\.uint8: give preprocessed pixels"),
        (lambda d: "nowhere", "no data at nowhere: it is neither a file nor a folder, and a Hub id has the form"),
        (lambda d: [object()], "a batch of type object"),
        (lambda d: 7, "data of type int"),
    ],
)
def test_unusable_data_is_refused(folder, make, message):
    with pytest.raises(ZipItError, match=message):
        open_images(make(folder), pixel)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image 0 \(.*broken.png\) cannot be read: it is no image in a format"):
        open_images(tmp_path, pixel)[0]


@pytest.mark.parametrize("count", [0, -2])
def test_less_than_one_image_is_refused(folder, count):
    for data in (folder, [torch.zeros(2, 3, 2, 2)]):
        with pytest.raises(OptionError, match=r"num_images is .*: it must be at least 1"):
            open_images(data, pixel, num_images=count)


def test_fewer_images_than_asked_for_are_refused(folder):
    with pytest.raises(OptionError, match="there are 6 images, and num_images is 7"):
        open_images(folder, pixel, num_images=7)
    with pytest.raises(OptionError, match="there are 2 images, and num_images is 3"):
        open_images([torch.zeros(2, 3, 2, 2)], None, num_images=3)

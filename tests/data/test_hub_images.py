"""Image files on the Hub: what `datasets` leaves out is told, and the Hub is not needed to read what is cached."""

import pytest

from hf_zipit.data import rows
from hf_zipit.data.images import open_images
from hf_zipit.data.rows import TEST
from hf_zipit.errors import DataError
from tests.data.test_folder import picture
from tests.data.test_images import pixel


@pytest.fixture
def vehicles(datasets_hub, tmp_path):
    for name in ("bus", "car", "train"):
        picture(tmp_path / "vehicles" / f"{name}.png")
    datasets_hub.add("user/vehicles", tmp_path / "vehicles")
    return "user/vehicles"


def test_images_that_are_taken_for_a_split_are_told(vehicles, caplog):
    assert len(open_images(vehicles, pixel)) == 1
    assert "user/vehicles: 1 of its 3 images are read: names of files and folders were taken for splits" in caplog.text


def test_data_without_a_test_split_are_read_with_a_warning(datasets_hub, tmp_path, caplog):
    for name in ("cat", "dog"):
        picture(tmp_path / "animals" / f"{name}.png")
    datasets_hub.add("user/animals", tmp_path / "animals")
    assert len(open_images("user/animals", pixel)) == 2
    assert len(open_images("user/animals:train", pixel, splits=TEST)) == 2
    assert not caplog.text
    assert len(open_images("user/animals", pixel, splits=TEST)) == 2
    assert "user/animals has no test split: all of its images are read (user/animals:train is silent)" in caplog.text


def test_a_hub_that_does_not_list_files_keeps_nobody_from_reading_them(vehicles, monkeypatch):
    def unreachable(access):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(rows, "client", unreachable)
    assert len(open_images(vehicles, pixel)) == 1


@pytest.mark.parametrize(("offline", "said"), [(True, "HF_HUB_OFFLINE is set"), (False, "the Hub cannot be reached")])
def test_data_that_cannot_be_reached_are_refused_with_a_way_out(offline, said, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'user/pets' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    with pytest.raises(DataError, match=f"user/pets: it is neither a path nor cached, and {said}"):
        open_images("user/pets", pixel)

"""What the app may read and write: nothing beside its folders, by whatever path."""

import json

import pytest

from hf_zipit.app.places import Places
from hf_zipit.errors import OptionError


@pytest.fixture
def secret(tmp_path):
    """A model and images beside the working folder."""
    place = tmp_path / "secret"
    (place / "images").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "images" / "a.png").touch()
    return place


def test_paths_below_the_folder_and_hub_ids_are_taken(folder):
    (folder / "a" / "b").mkdir(parents=True)
    places = Places(folder)
    assert places.model("a/b") == places.model(str(folder / "a" / "b")) == str(folder / "a" / "b")
    assert places.model("a/../a/b") == str(folder / "a" / "b")
    assert places.model("user/pets") == "user/pets"
    assert places.model("user/pets@main") == "user/pets@main"
    assert places.data("a:test") == f"{folder / 'a'}:test"
    assert places.data("user/pets:test") == "user/pets:test"
    assert places.result("new/merged") == folder / "new" / "merged"
    for given in ("nothing", "a/b/c/d", "", "a\nb"):
        with pytest.raises(OptionError):
            places.model(given)
        with pytest.raises(OptionError):
            places.data(given)


@pytest.mark.parametrize("kind", ["model", "data"])
def test_paths_outside_are_refused_however_they_are_written(folder, secret, kind, monkeypatch):
    monkeypatch.setenv("HOME", str(secret.parent))
    (folder / "link").symlink_to(secret)
    (folder / "honest").mkdir()
    (folder / "honest" / "weights").symlink_to(secret / "config.json")
    (folder / "chain").symlink_to(folder / "honest")
    take = getattr(Places(folder), kind)
    paths = ["../secret", str(secret), "~/secret", "link", "link/images", "honest/../../secret", "honest", "chain"]
    for given in paths:
        for path in (given, f"{given}:train") if kind == "data" else (given,):
            with pytest.raises(OptionError, match="outside"):
                take(path)
    with pytest.raises(OptionError, match="outside"):
        take("../not there")  # nothing is said of what exists
    allowed = Places(folder, [secret])
    assert getattr(allowed, kind)("link") == str(secret)
    assert getattr(allowed, kind)("honest") == str(folder / "honest")


def test_results_are_written_below_the_folder_alone(folder, secret):
    (folder / "link").symlink_to(secret)
    places = Places(folder, [secret])
    for given in ("../merged", str(secret / "merged"), "link/merged", ".", "", " ", "a/../..", "a\0b"):
        with pytest.raises(OptionError):
            places.result(given)


def test_a_base_that_a_model_names_is_read_only_if_it_may(folder, secret):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(secret)}))
    (folder / "tuned").mkdir()
    (folder / "tuned" / "README.md").write_text("---\nbase_model: ../../secret\n---\n")
    for given in ("adapter", "tuned"):
        with pytest.raises(OptionError, match=r"was made of .* outside"):
            Places(folder).model(given)
        assert Places(folder, [secret]).model(given)


def test_a_folder_of_the_current_one_is_not_read_in_place_of_a_hub_id(folder, tmp_path, monkeypatch):
    (tmp_path / "user" / "pets").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for take in (Places(folder).model, Places(folder).data):
        with pytest.raises(OptionError, match="outside"):
            take("user/pets")
    with pytest.raises(OptionError, match="outside"):
        Places(folder).data("user/pets:test")


def test_models_and_images_of_the_folder_are_listed(folder):
    for name in ("models/a/config.json", "models/b/config.json", "table/train.parquet", "photos/cat/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("photos/dog/1.jpg", ".hidden/config.json", "models/a/results.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    places = Places(folder)
    assert places.models() == ["models/a", "models/b"]
    assert sorted(places.image_sets()) == ["photos", "table"]
    assert places.free_name() == "merged"
    (folder / "merged").mkdir()
    assert places.free_name() == "merged-2"


def test_there_must_be_such_folders(folder):
    with pytest.raises(OptionError, match="there is no folder"):
        Places(folder / "nothing")
    with pytest.raises(OptionError, match="there is no folder"):
        Places(folder, [folder / "nothing"])

"""Folders that hold a damaged merge: whatever reads them says so in one message."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import hf_zipit
from hf_zipit.errors import OutputError, SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.provenance import Provenance


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    merged = hf_zipit.merge(digits, method="average", calibrate="none")
    return saving.save(merged, tmp_path_factory.mktemp("whole") / "merged")


@pytest.fixture
def damaged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "merged")


def change(file, **values):
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def shorten(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


DAMAGES = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a folder as config": lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "short weights": shorten,
    "a record that is no mapping": lambda folder: change(folder / "config.json", zipit="x"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("command", ["eval", "export", "inspect", "merge"])
def test_a_damaged_merge_is_one_message(run, damaged, digits, digits_data, tmp_path, damage, command):
    DAMAGES[damage](damaged)
    out = ["-o", tmp_path / "out"]
    arguments = {
        "eval": [damaged, "--data", digits_data, "--num-images", 40],
        "export": [damaged, "--format", "timm", *out],
        "inspect": [damaged],
        "merge": [damaged, digits[0], "--method", "average", "--calibrate", "none", *out],
    }
    code, _, err = run(command, *arguments[command])
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "internal error" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize(
    "text", ["", "a: [", "sources: 3", "cut: [a]", "sources: [{path: 3}]", "tasks: [a, a]", "alpha: .nan"]
)
def test_a_damaged_recipe_is_not_uploaded(hub, run, damaged, text):
    (damaged / "zipit_config.yml").write_text(text)
    code, _, err = run("push", damaged, "user/merged")
    assert code == 2
    assert "zipit_config.yml" in err
    assert len(err.splitlines()) == 1
    assert "user/merged" not in hub.repos


def test_weights_that_are_not_finite_are_not_uploaded(hub, damaged):
    state = load_file(damaged / "model.safetensors")
    name = next(name for name, value in state.items() if value.is_floating_point())
    state[name].flatten()[:2] = torch.inf
    save_file(state, damaged / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OutputError, match=rf"2 of \d+ values of {name} are NaN or infinite: not uploaded"):
        hf_zipit.push(damaged, "user/merged")
    assert "user/merged" not in hub.repos


@pytest.mark.parametrize("library", ["zipit", "timm"])
def test_weights_that_are_not_finite_are_not_written(digits, parents, tmp_path, library):
    merged = hf_zipit.merge(parents, method="average", calibrate="none")
    merged.trunk.bn1.running_var[3] = torch.nan
    with pytest.raises(OutputError, match=r"out is not written: 1 of 64 values of trunk.bn1.running_var are NaN"):
        saving.save(merged, tmp_path / "out", library=library)
    with pytest.raises(ValueError, match=r"trunk.bn1.running_var"):
        merged.save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_is_interrupted_leaves_no_temporary_copy(hub, folder, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("hf_zipit.saving.push.upload", interrupted)
    merged = hf_zipit.saving.load.load_merged(folder)
    with pytest.raises(KeyboardInterrupt):
        hf_zipit.push(merged, "user/merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")  # the client's own
def test_the_address_of_an_upload_as_json(hub, run, folder):
    code, printed, _ = run("push", folder, "user/merged", "--json")
    assert code == 0
    commit = hub.repos["user/merged"].at()[0]
    address = f"{hub.endpoint}/user/merged/commit/{commit}"
    schema = {"schema": "hf-zipit/push/1"}
    assert json.loads(printed) == {**schema, "folder": str(folder), "repository": "user/merged", "address": address}


def test_what_a_repository_holds_may_be_unreadable(hub, folder):
    hub.add("user/merged").commit({"config.json": b"{"}, "damaged")
    with pytest.raises(OutputError, match=r"user/merged holds another model \(unreadable\)"):
        hf_zipit.push(folder, "user/merged")


@pytest.mark.parametrize("record", ["x", [1], {"sources": {}}, {"recipe": []}, {"generator": 3}, {"data": [None, "x"]}])
def test_a_damaged_record_is_refused(record):
    with pytest.raises(SourceError, match="the record of the merge is damaged"):
        Provenance.from_dict(record)


def test_paths_of_a_merge_behind_a_link_lead_to_its_parents(digits, tmp_path):
    (tmp_path / "far" / "disk").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "disk")
    merged = hf_zipit.merge(digits, method="average", calibrate="none")
    saving.save(merged, tmp_path / "link")
    recipe = yaml.safe_load((tmp_path / "link" / "zipit_config.yml").read_text())
    for source, parent in zip(recipe["sources"], digits, strict=True):
        assert (tmp_path / "link" / source["path"]).samefile(parent)

"""Sending a merge to the Hub, through the real client: what arrives, and what happens when it does not."""

import json

import pytest
import yaml

import hf_zipit
from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from tests.helpers.hub import OTHER, OWNER

# the client's own way of sending large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
FILES = {"config.json", "model.safetensors", "modeling_zipit.py", "configuration_zipit.py", "pretrained_zipit.py"}
FILES |= {"steps.py", "README.md", "zipit_config.yml", "zipit_spec.yaml"}


@pytest.fixture(scope="module")
def merged(digits):
    return hf_zipit.merge(digits, method="average", calibrate="none")


@pytest.fixture(scope="module")
def folder(merged, tmp_path_factory):
    return saving.save(merged, tmp_path_factory.mktemp("push") / "merged")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(sent, folder, repo="user/merged"):
    """Equal but for where the parents lie on this machine, and for the repository that the card names."""
    files = content(folder)
    files["README.md"] = files["README.md"].replace(b"path/or/id", repo.encode())
    assert repo.encode() in files["README.md"]
    texts = ("config.json", "zipit_config.yml")
    assert {k: v for k, v in sent.items() if k not in texts} == {k: v for k, v in files.items() if k not in texts}
    for name in texts:
        mine, theirs = (yaml.safe_load(data[name]) for data in (files, sent))
        for source in mine["sources"] if "sources" in mine else mine["zipit"]["sources"]:
            assert source.pop("path")
        assert mine == theirs
    return True


def test_a_folder_arrives_as_it_is_in_one_commit(hub, folder):
    address = hf_zipit.push(folder, "user/merged", private=True)
    repo = hub.repos["user/merged"]
    assert address == f"{hub.endpoint}/user/merged/commit/{repo.at()[0]}"
    assert repo.private
    assert same(repo.at()[1], folder)
    assert set(content(folder)) >= FILES
    assert repo.messages == ["initial commit", "Merge digits-0-4 and digits-5-9"]
    loaded = load_merged(f"user/merged@{repo.at()[0]}")
    assert loaded.config.tasks == ["digits-0-4", "digits-5-9"]
    count = len(repo.commits)
    hf_zipit.push(folder, "user/merged")  # nothing has changed
    assert len(repo.commits) <= count + 1
    assert same(repo.at()[1], folder)


def test_a_model_in_memory_keeps_its_card_and_files(hub, merged):
    merged.push_to_hub("user/from-model", commit_message="mine")
    repo = hub.repos["user/from-model"]
    files = repo.at()[1]
    assert set(files) >= FILES
    assert files["README.md"].startswith(b"---\nlibrary_name: transformers\npipeline_tag: image-classification\n")
    assert repo.messages[-1] == "mine"
    hf_zipit.push(merged, "user/pushed")
    card = files["README.md"].replace(b"user/from-model", b"user/pushed")
    assert hub.repos["user/pushed"].at()[1]["README.md"] == card
    loaded = type(merged).from_pretrained(saving.save(merged, folder_for(hub, "x")))
    loaded.push_to_hub("user/again")
    again = hub.repos["user/again"].at()[1]["README.md"]
    assert again == files["README.md"].replace(b"user/from-model", b"user/again")
    assert set(hub.repos["user/again"].at()[1]) == set(files)


def folder_for(hub, name):
    from pathlib import Path

    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).parent / name


def test_a_branch_and_a_pull_request(hub, folder):
    hf_zipit.push(folder, "user/merged")
    main = hub.repos["user/merged"].at()[0]
    hf_zipit.push(folder, "user/merged", revision="v1", commit_message="first version")
    repo = hub.repos["user/merged"]
    assert set(repo.branches) == {"main", "v1"}
    assert repo.at()[0] == main
    assert same(repo.at("v1")[1], folder)
    other = hub.add("lab/model", folder)
    address = hf_zipit.push(folder, "lab/model", create_pr=True, token=OTHER)
    assert address == f"{hub.endpoint}/lab/model/discussions/1"
    assert set(other.branches) == {"main", "refs/pr/1"}
    with pytest.raises(OptionError, match="a pull request goes to main"):
        hf_zipit.push(folder, "lab/model", create_pr=True, revision="v1")


def test_files_of_an_earlier_merge_go_and_others_stay(hub, folder):
    old = {"config.json": b'{"model_type": "zipit"}', "model-00001-of-00002.safetensors": b"x", "plot.png": b"x"}
    hub.add("user/merged").commit({**old, "preprocessor_config.json": b"{}"}, "earlier")
    hf_zipit.push(folder, "user/merged")
    assert set(hub.repos["user/merged"].at()[1]) == {*content(folder), "plot.png"}


def test_another_model_is_never_replaced(hub, folder, digits):
    hub.add("user/parent", digits[0])
    with pytest.raises(OutputError, match=r"user/parent holds another model \(cifar_resnet20\): choose another name"):
        hf_zipit.push(folder, "user/parent")
    assert "commit" not in "".join(path for _, path in hub.log)
    with pytest.raises(SourceError, match="is not a merged model"):
        hf_zipit.push(digits[0], "user/new")
    assert "user/new" not in hub.repos


def test_who_may_not_write_is_told_before_any_upload(hub, folder, monkeypatch):
    from huggingface_hub import constants

    hub.add("user/merged", folder)
    with pytest.raises(OutputError, match="user/merged: your access token does not allow this"):
        hf_zipit.push(folder, "user/merged", token=OTHER)
    with pytest.raises(OutputError, match=r"user/merged: the Hub does not accept the access token"):
        hf_zipit.push(folder, "user/merged", token="hf_wrongwrongwrong")
    with pytest.raises(OptionError, match="'user/a name' is not a valid repository id"):
        hf_zipit.push(folder, "user/a name")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OutputError, match="uploading needs an access token: log in with"):
        hf_zipit.push(folder, "user/merged")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OutputError, match="HF_HUB_OFFLINE is set"):
        hf_zipit.push(folder, "user/merged", token=OWNER)
    assert not hub.asked("POST", "commit") + hub.asked("PUT", "lfs")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            lambda hub: hub.fail("POST", "/commit/", 401, code=""),
            "does not accept the access token|does not exist",
        ),
        (lambda hub: hub.fail("POST", "/commit/", 403, code=""), "your access token does not allow this"),
        (lambda hub: hub.fail("POST", "/commit/", 404, code=""), "error 404"),
        (lambda hub: hub.fail("POST", "/commit/", 409, code=""), "changed by someone else in the meantime"),
        (lambda hub: hub.fail("POST", "/preupload/", 500), "the Hub has a server error"),
        (lambda hub: hub.fail("PUT", "/lfs/", 503), "the Hub has a server error|503"),
        (lambda hub: hub.drop("PUT", "/lfs/", after=1000), "the connection to .* failed"),
        (lambda hub: hub.drop("POST", "/commit/", after=100), "the connection to .* failed"),
    ],
)
@pytest.mark.sample(3)
def test_a_failed_upload_leaves_the_folder_and_can_be_resumed(hub, folder, fault, message):
    before = content(folder)
    fault(hub)
    with pytest.raises(OutputError, match=message) as failed:
        hf_zipit.push(folder, "user/merged", revision="v2")
    assert f"hf-zipit push {folder} user/merged --revision v2" in str(failed.value)
    assert OWNER not in str(failed.value)
    assert content(folder) == before
    hub.faults.clear()
    sent = hub.asked("PUT", "/lfs/")
    stored = set(hub.blobs)
    hf_zipit.push(folder, "user/merged", revision="v2")
    assert same(hub.repos["user/merged"].at("v2")[1], folder)
    assert hub.asked("PUT", "/lfs/") - sent == (0 if stored else 1)  # what had arrived is not sent again


def test_a_model_in_memory_whose_upload_fails_is_kept(hub, merged, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    hub.fail("POST", "/commit/", 409, code="")
    with pytest.raises(OutputError, match=r"The merged model is complete in .*kept.*; upload it") as failed:
        hf_zipit.push(merged, "user/merged")
    place = str(failed.value).partition("hf-zipit push ")[2].split()[0]
    assert load_merged(place).config.tasks == merged.config.tasks


def test_no_file_that_is_sent_holds_a_token_or_a_place_of_this_machine(hub, digits, digits_data):
    merged = hf_zipit.merge(digits, digits_data, method="average", num_images=8)
    hf_zipit.push(merged, "user/merged")
    sent = b"".join(data for name, data in hub.repos["user/merged"].at()[1].items() if name != "model.safetensors")
    assert OWNER.encode() not in sent
    assert str(digits[0].parent).encode() not in sent
    merged.locations = {"sources": list(digits), "data": [str(digits_data)]}
    hf_zipit.push(saving.save(merged, folder_for(hub, "saved")), "user/saved")
    sent = hub.repos["user/saved"].at()[1]
    assert b"../" not in sent["config.json"] + sent["zipit_config.yml"]
    assert b"folder: digits-0-4" in sent["zipit_config.yml"]
    assert json.loads(hub.repos["user/merged"].at()[1]["config.json"])["zipit"]["recipe"]["method"] == "average"


@pytest.mark.slow
def test_an_ordinary_checkpoint_is_uploaded_and_replaced(hub, run, parents, tmp_path):
    import timm

    plain = tmp_path / "plain"
    options = ["--method", "average", "--calibrate", "none", "--format", "timm"]
    code, printed, _ = run("merge", *parents, *options, "-o", plain, "--push-to", "user/plain")
    sent = hub.repos["user/plain"].at()[1]
    assert code == 0
    assert printed.strip() == f"{hub.endpoint}/user/plain/commit/{hub.repos['user/plain'].at()[0]}"
    assert set(sent) == {path.name for path in plain.iterdir()}
    assert b"library_name: timm" in sent["README.md"]
    assert str(tmp_path).encode() not in b"".join(sent.values())
    assert timm.create_model("hf-hub:user/plain", pretrained=True).num_classes == 10
    assert hub.repos["user/plain"].messages[-1] == "Merge pets and birds"
    for task in ("pets", "birds"):  # from a merge on disk, over the earlier upload
        merged = saving.save(hf_zipit.merge(parents, method="average", calibrate="none"), tmp_path / f"merge-{task}")
        assert run("export", merged, "--format", "timm", "--task", task, "-o", tmp_path / task)[0] == 0
        assert run("push", tmp_path / task, "user/plain")[0] == 0
        assert json.loads(hub.repos["user/plain"].at()[1]["config.json"])["num_classes"] == 5

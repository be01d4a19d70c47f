"""Models from the Hub, through the real client: what is fetched, what is recorded, and what is said when it fails."""

import json
import logging
import resource
import shutil

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.load import load_source
from tests.helpers.hub import OTHER, OWNER

WEIGHTS = "model.safetensors"


@pytest.fixture
def repo(hub, digits):
    """A repo with a model and files that nobody needs."""
    repo = hub.add("user/model", digits[0])
    files = {**repo.at()[1], "pytorch_model.bin": b"pickle", "README.md": b"# hello", "other.safetensors": b"x"}
    repo.commit(files, "more files")
    return repo


def test_a_repository_is_pinned_to_its_commit_and_only_what_is_needed_is_fetched(repo, hub, digits):
    source = load_source("user/model")
    assert source.origin == {
        **load_source(digits[0]).origin,
        "id": "user/model",
        "folder": None,
        "revision": repo.at()[0],
    }
    assert source.name == "model"
    assert all(
        torch.equal(v, load_source(digits[0]).model.state_dict()[k]) for k, v in source.model.state_dict().items()
    )
    assert {path.rpartition("/")[2] for m, path in hub.log if "/resolve/" in path} == {
        "config.json",
        "README.md",
        WEIGHTS,
    }


def test_a_revision_is_a_branch_or_a_commit(repo, hub, digits):
    first, last = repo.commits
    repo.commit({p.name: p.read_bytes() for p in digits[1].iterdir()}, "other", branch="feature/five")
    assert load_source(f"user/model@{first}").origin["revision"] == first
    assert load_source("user/model").origin["revision"] == last
    assert load_source("user/model@feature/five").labels == ["5", "6", "7", "8", "9"]
    with pytest.raises(SourceError, match="user/model has no revision 'v9'; pass a branch, a tag or a commit"):
        load_source("user/model@v9")


def test_a_model_in_the_cache_needs_no_network(repo, hub, monkeypatch):
    sha = load_source("user/model").origin["revision"]
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_source("user/model").origin["revision"] == sha
    assert load_source(f"user/model@{sha}").origin["revision"] == sha
    with pytest.raises(SourceError, match="user/other is neither a folder nor fully cached, and HF_HUB_OFF"):
        load_source("user/other")
    assert hub.log == []


@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_in_trouble_is_said_so_and_the_cache_is_used(repo, hub, status):
    hub.fail("GET", "/api/models/", status)
    with pytest.raises(SourceError, match=f"user/model: the Hub has a server error \\({status}"):
        load_source("user/model")
    hub.faults.clear()
    sha = load_source("user/model").origin["revision"]
    hub.fail("GET", "/api/models/", status)
    assert load_source("user/model").origin["revision"] == sha


def test_a_renamed_repository_is_found_by_its_old_name(repo, hub, monkeypatch, caplog):
    hub.renamed["user/old"] = "user/model"
    source = load_source("user/old")
    assert source.origin["id"] == "user/model"
    assert source.origin["revision"] == repo.at()[0]
    assert "user/old is now called user/model; use the new name" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_source("user/old").origin["revision"] == repo.at()[0]


def test_private_gated_and_missing_repositories_say_which(repo, hub, digits, monkeypatch):
    repo.private = True
    gated = hub.add("lab/gated", digits[0], gated=True)
    assert load_source("user/model").name == "model"
    with pytest.raises(SourceError, match=r"lab/gated is gated; accept its conditions at http.*no access yet"):
        load_source("lab/gated")
    refused = "is not a folder and does not exist on the Hub, or is private and your access token"
    with pytest.raises(SourceError, match=f"user/none {refused}"):
        load_source("user/none")
    monkeypatch.setenv("HF_TOKEN", OTHER)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-another-user")
    with pytest.raises(SourceError, match=f"user/model {refused}"):
        load_source("user/model")
    assert load_source("user/model", access=Access(token=OWNER)).name == "model"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", constants.HF_HUB_CACHE + "-of-nobody")
    with pytest.raises(SourceError, match=r"user/model is not a folder .* log in with `hf auth login`, set HF_TOKEN"):
        load_source("user/model")
    with pytest.raises(SourceError, match=r"lab/gated is gated; .*log in with `hf auth login`, set HF_TOKEN"):
        load_source("lab/gated")
    gated.gated = False
    assert load_source("lab/gated").name == "gated"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not accept the access token"),
        (403, "your access token does not allow this"),
        (404, "the Hub answered with error 404"),
        (409, "was changed by someone else"),
        (429, "too many requests"),
    ],
)
def test_each_refusal_of_a_file_has_its_message(repo, hub, status, message):
    hub.fail("GET", WEIGHTS, status, code="")
    with pytest.raises(SourceError, match=f"user/model: .*{message}"):
        load_source("user/model")


def test_no_message_holds_a_token(repo, hub, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "hf_secretsecretsecret"
    for token in (secret, f"{secret}\n", "a token that looks like none"):
        monkeypatch.setenv("HF_TOKEN", token)
        for access in (Access(), Access(token=token)):
            with pytest.raises(SourceError) as refused:
                load_source("user/model", access=access)
            assert token.strip() not in str(refused.value)
    assert secret not in caplog.text


def test_a_connection_lost_in_the_middle_of_the_weights_goes_on_where_it_was(repo, hub, caplog):
    hub.drop("GET", WEIGHTS, after=5000, times=1)
    assert load_source("user/model").name == "model"
    assert hub.asked("GET", WEIGHTS) == 2


def test_a_connection_that_is_always_lost_leaves_no_model_and_a_later_try_succeeds(repo, hub, digits):
    hub.drop("GET", WEIGHTS, after=5000)
    message = r"user/model: the connection to http://127.0.0.1:.* failed .*; try again.*no folder user/model"
    with pytest.raises(SourceError, match=message):
        load_source("user/model")
    hub.faults.clear()
    assert load_source("user/model").origin["sha256"] == load_source(digits[0]).origin["sha256"]


def test_a_full_disk_is_named_and_a_later_try_succeeds(repo, hub, digits):
    """No file may grow beyond what the small ones need: writing the weights fails as on a disk with a quota."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(SourceError, match="the disk or quota holding the cache is full"):
            load_source("user/model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_source("user/model").origin["sha256"] == load_source(digits[0]).origin["sha256"]


def test_weights_in_several_files_are_read_together(hub, digits, tmp_path):
    folder = shutil.copytree(digits[0], tmp_path / "sharded")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    mapping = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        save_file({k: v for k, v in state.items() if mapping[k] == name}, folder / name)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    hub.add("user/sharded", folder)
    for place in (folder, "user/sharded"):
        source = load_source(place)
        assert all(torch.equal(value, state[key]) for key, value in source.model.state_dict().items())
        assert len(source.origin["sha256"]) == 64
    (folder / names[1]).unlink()
    with pytest.raises(SourceError, match=r"lacks model-00002-of-00002\.safetensors"):
        load_source(folder)


def test_pickled_weights_need_a_flag(hub, digits, tmp_path):
    folder = shutil.copytree(digits[0], tmp_path / "pickled")
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    hub.add("user/pickled", folder)
    for place in (folder, "user/pickled"):
        with pytest.raises(SourceError, match=r"only pickled weights \(pytorch_model.bin\).*--allow-pickle"):
            load_source(place)
        allowed = load_source(place, access=Access(allow_pickle=True))
        assert all(torch.equal(value, state[key]) for key, value in allowed.model.state_dict().items())

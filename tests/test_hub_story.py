"""The whole story with a Hub, as three people live it: each in a new process, through the real client."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import HfApi

from hf_zipit.saving.load import load_merged
from tests.helpers.hub import OWNER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(6))

STRANGER = """
import sys, warnings
sys.modules["hf_zipit"] = None  # never heard of it
warnings.simplefilter("error", UserWarning)
import numpy, timm, torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

torch.set_num_threads(1)
repo, revision = sys.argv[1:3]
trust = {"trust_remote_code": True, "revision": revision}
pixels = torch.load("pixels.pt")
model = AutoModelForImageClassification.from_pretrained(repo, **trust).eval()
with torch.no_grad():
    out = model(pixel_values=pixels)
torch.save({"logits": out.logits, **out.task_logits}, "stranger.pt")
half = AutoModelForImageClassification.from_pretrained(repo, dtype=torch.float16, device_map="cpu", **trust)
assert half.dtype == torch.float16 and half.device.type == "cpu"
assert (half(pixel_values=pixels.half()).logits.float() - out.logits).abs().max() < 0.1

image = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=numpy.uint8))
processor = AutoImageProcessor.from_pretrained(repo, **trust)
config = AutoConfig.from_pretrained(repo, **trust)
settings = timm.data.resolve_data_config(pretrained_cfg=config.pretrained_cfg)
expected = timm.data.create_transform(**settings, is_training=False)(image)
assert torch.equal(processor(image, return_tensors="pt")["pixel_values"][0], expected)

joint = pipeline("image-classification", model=repo, **trust)(image, top_k=20)
assert {answer["label"] for answer in joint} == set("0123456789")
one = {"active_task": "B"}
high = pipeline("image-classification", model=repo, model_kwargs=one, **trust)(image, top_k=20)
assert {answer["label"] for answer in high} == set("56789")

model.save_pretrained("again")
again = AutoModelForImageClassification.from_pretrained("again", trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(again(pixel_values=pixels).logits, out.logits)
assert "B" in open("again/README.md").read()
"""

OFFLINE = """
import sys
import hf_zipit
import torch
from transformers import AutoModelForImageClassification, pipeline

torch.set_num_threads(1)
repo, revision = sys.argv[1:3]
model = AutoModelForImageClassification.from_pretrained(repo, revision=revision).eval()
assert type(model).__module__ == "hf_zipit.models.modeling_zipit"
with torch.no_grad():
    torch.save({"logits": model(pixel_values=torch.load("pixels.pt")).logits}, "offline.pt")
classify = pipeline("image-classification", model=repo)
assert len(classify.model.config.id2label) == 10
again = hf_zipit.merge([repo, "user/A"], method="average", calibrate="none")
assert again.config.tasks == ["A-1", "B", "A-2"]
"""


@pytest.fixture
def run_python(hub, tmp_path):
    """Run Python in a new process that knows this Hub, has a home of its own, and is logged in."""
    torch.save(PIXELS, tmp_path / "pixels.pt")
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": OWNER}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_DEBUG": ""}

    def call(*arguments, **changes):
        command = [sys.executable, *map(str, arguments)]
        changed = {**environment, **changes}
        done = subprocess.run(command, cwd=tmp_path, env=changed, capture_output=True, text=True, timeout=300)
        assert OWNER not in done.stdout + done.stderr
        return done

    return call


@pytest.mark.slow
def test_two_parents_become_one_model_that_everybody_can_use(hub, run_python, digits, digits_data, tmp_path):
    author = HfApi()
    for name, folder in zip("AB", digits, strict=True):
        author.create_repo(f"user/{name}")
        author.upload_folder(repo_id=f"user/{name}", folder_path=folder)

    options = ["--data", digits_data, "--num-images", 64, "--push-to", "user/merged", "--private", "--json"]
    done = run_python("-m", "hf_zipit", "merge", "user/A", "user/B", *options)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    repo = hub.repos["user/merged"]
    revision = repo.at()[0]
    assert about["address"].endswith(f"/user/merged/commit/{revision}")
    assert [s["id"] for s in about["sources"]] == ["user/A", "user/B"]
    assert [s["revision"] for s in about["sources"]] == [hub.repos[f"user/{name}"].at()[0] for name in "AB"]
    assert repo.private
    files = repo.at()[1]
    assert b"base_model:\n- user/A\n- user/B\n" in files["README.md"]
    assert b"base_model_relation: merge\n" in files["README.md"]
    assert OWNER.encode() not in b"".join(files.values())

    with torch.no_grad():
        expected = load_merged(tmp_path / "merged")(PIXELS)
    repo.commit({"README.md": b"something newer"}, "a later mistake")
    done = run_python("-c", STRANGER, "user/merged", revision)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "stranger.pt")
    assert torch.equal(found["logits"], expected.logits)
    assert all(torch.equal(found[task], expected.task_logits[task]) for task in "AB")

    repo.branches["main"] = revision
    hub.log.clear()
    run_python("-c", "import huggingface_hub as h; h.snapshot_download('user/merged')")
    hub.drop("GET", ".")
    hub.drop("HEAD", ".")
    asked = len(hub.log)
    done = run_python("-c", OFFLINE, "user/merged", revision, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "offline.pt")["logits"], expected.logits)
    assert len(hub.log) == asked


@pytest.fixture
def run_here(hub, run, monkeypatch, tmp_path):
    """Run the command line in this process, in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code, printed, err = run(*arguments)
        assert OWNER not in printed + err
        return code, printed.strip(), err

    return call


def test_a_failed_upload_is_one_message_and_push_goes_on(hub, run_here, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    hub.drop("POST", "/commit/", after=50)
    options = ["--method", "average", "--calibrate", "none", "--push-to", "user/merged", "--token", OWNER]
    code, _, err = run_here("merge", *digits, *options)
    assert code == 1
    (error,) = (line for line in err.splitlines() if line.startswith("Error: "))
    assert error.startswith("Error: user/merged: the connection to")
    assert "upload it, or what is missing of it, with: hf-zipit push merged user/merged" in err
    assert load_merged(tmp_path / "merged").config.tasks == ["digits-0-4", "digits-5-9"]
    hub.faults.clear()
    code, address, _ = run_here("push", "merged", "user/merged", "--create-pr", "--message", "Two in one")
    assert code == 0
    assert address == f"{hub.endpoint}/user/merged/discussions/1"
    repo = hub.repos["user/merged"]
    assert set(repo.at("refs/pr/1")[1]) == {path.name for path in (tmp_path / "merged").iterdir()}
    assert repo.messages[-1] == "Two in one"


def test_the_target_is_checked_before_any_work(hub, run_here, digits, monkeypatch, tmp_path):
    hub.add("user/parent", digits[0])
    start = ["merge", *digits, "--data", "nowhere"]
    code, _, err = run_here(*start, "--push-to", "user/parent")
    assert code == 1
    assert "user/parent holds another model (cifar_resnet20): choose another name" in err
    monkeypatch.delenv("HF_TOKEN")
    assert "uploading needs an access token" in run_here(*start, "--push-to", "user/merged")[2]
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}

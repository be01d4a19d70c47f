import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

import hf_zipit
from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from tests.helpers.models import images, tiny

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
READ = """
import sys, torch
{first}
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(sys.argv[1]{flag}).eval()
pixels = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(dict(model(pixel_values=pixels).task_logits), sys.argv[3])
"""


@pytest.fixture(scope="module")
def merged(digits, digits_data):
    return hf_zipit.merge(digits, digits_data, cut="layer2", num_images=100)


@pytest.fixture(scope="module")
def folder(merged, tmp_path_factory):
    return saving.save(merged, tmp_path_factory.mktemp("out") / "merged")


def read_in_new_process(folder, tmp_path, first, flag="", env=None):
    torch.save(PIXELS, tmp_path / "pixels.pt")
    command = [sys.executable, "-c", READ.format(first=first, flag=flag), str(folder), "pixels.pt", "out.pt"]
    environment = {**os.environ, **(env or {})}
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=300)
    return torch.load(tmp_path / "out.pt")


@pytest.mark.slow
def test_a_new_process_gives_the_same_bits(merged, folder, tmp_path):
    with torch.no_grad():
        expected = merged(PIXELS).task_logits
    found = read_in_new_process(folder, tmp_path, "import hf_zipit; torch.set_num_threads(1)")
    assert list(found) == list(expected)
    assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.mark.sample(1)
def test_the_folder_loads_without_hf_zipit(merged, folder, tmp_path):
    """The package is hidden: the code files in the folder are all there is."""
    hide = "sys.modules['hf_zipit'] = None; torch.set_num_threads(1)"
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    found = read_in_new_process(folder, tmp_path, hide, ", trust_remote_code=True", env)
    with torch.no_grad():
        expected = merged(PIXELS).task_logits
    assert all(torch.equal(found[task], expected[task]) for task in expected)


@pytest.mark.slow
def test_save_pretrained_alone_writes_the_code_files(digits, digits_data, tmp_path):
    """In a process that has never touched transformers' Auto classes."""
    code = "import sys, hf_zipit; m = hf_zipit.merge(sys.argv[1:3], sys.argv[3], num_images=8, method='average')\n"
    code += "m.save_pretrained('out')"
    command = [sys.executable, "-c", code, *map(str, digits), str(digits_data)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"modeling_zipit.py", "configuration_zipit.py", "cifar_resnet.py"} <= names


def test_everything_is_in_the_folder(folder):
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o644"}
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "configuration_zipit.py", "modeling_zipit.py", "README.md"} <= names
    assert {saving.SPEC, saving.RECIPE} <= names
    assert "cifar_resnet.py" in names  # the one architecture that no library has
    assert "cifar_vgg.py" not in names
    assert "cifar_vgg" not in (folder / "modeling_zipit.py").read_text()
    assert not any(p.name.startswith(".") for p in folder.parent.iterdir())
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "zipit"
    assert "tmp" not in json.dumps(config["zipit"]["sources"])


def test_transformers_reads_labels_tasks_and_preprocessing(folder, digits_data):
    config = AutoConfig.from_pretrained(folder)
    assert list(config.id2label.values()) == [str(i) for i in range(10)]
    one = AutoModelForImageClassification.from_pretrained(folder, active_task="digits-5-9")
    assert list(one.config.id2label.values()) == ["5", "6", "7", "8", "9"]
    with torch.no_grad():
        assert one(PIXELS).logits.shape == (2, 5)
    with pytest.raises(ValueError, match="unknown active_task 'cats'"):
        AutoConfig.from_pretrained(folder, active_task="cats")
    assert AutoImageProcessor.from_pretrained(folder) is not None
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(digits_data / "test.parquet"))["train"]
    classify = pipeline("image-classification", model=str(folder))
    assert len(classify(rows[0]["image"].convert("RGB"), top_k=10)) == 10


def test_half_precision_and_saving_again(merged, folder, tmp_path):
    half = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.unmerge[0].index.dtype == torch.long
    again = AutoModelForImageClassification.from_pretrained(folder)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "modeling_zipit.py").exists()
    last = AutoModelForImageClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(last(PIXELS).logits, merged(PIXELS).logits)


def test_widths_that_the_name_does_not_tell_survive(tmp_path):
    models = [tiny("resnet18", seed, layers=(2, 2, 2, 2), channels=(64, 16, 24, 32)) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(16), tasks=["a", "b"], cut="layer2")
    assert merged.config.shapes["trunk.layer2.0.conv1.weight"] == [16, 64, 3, 3]
    loaded = load_merged(saving.save(merged, tmp_path / "out"))
    assert {p.name for p in (tmp_path / "out").glob("*.py")} == {
        *("configuration_zipit.py", "modeling_zipit.py", "pretrained_zipit.py"),
        *("steps.py", "rerun.py", "resume.py"),
    }
    conv = loaded.trunk.layer2[0].conv1
    assert conv.in_channels == 64
    assert conv.out_channels == 16
    assert loaded.trunk.layer2[0].bn1.num_features == 16
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS).logits, merged(PIXELS).logits)


def test_a_model_that_its_config_does_not_describe_is_not_saved(tmp_path):
    args = {"layers": (2, 1, 1, 1), "channels": (8, 16, 24, 32)}
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(16), tasks=["a", "b"])
    with pytest.raises(OutputError, match=r"resnet18 cannot be rebuilt by name: .* differs.*load_source"):
        saving.save(merged, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    told = hf_zipit.merge([hf_zipit.load_source(m, args) for m in models], images(16), tasks=["a", "b"])
    load_merged(saving.save(told, tmp_path / "out"))


def test_an_existing_folder_is_kept(merged, folder, tmp_path):
    with pytest.raises(OptionError, match="exists already"):
        saving.save(merged, folder)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match="is not an earlier merge"):
        saving.save(merged, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    other = saving.save(merged, tmp_path / "again")
    assert saving.save(merged, other, overwrite=True) == other


def test_a_failure_leaves_nothing_behind(merged, tmp_path, monkeypatch):
    def fail(_, folder):
        (folder / "half").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(type(merged), "save_pretrained", fail)
    with pytest.raises(OutputError, match=r"cannot write .*out: disk full\. No partial result was left"):
        saving.save(merged, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(merged, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*out: .*large.*\. No partial result was left"):
            saving.save(merged, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_merge_is_refused(folder, tmp_path, name):
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / name).write_bytes((broken / name).read_bytes()[:200])
    with pytest.raises(SourceError, match=r"cannot load the merged model|is damaged|is not valid JSON"):
        load_merged(broken)
    with pytest.raises(SourceError, match="has no config"):
        load_merged(Path(tmp_path))

"""The command line under a real launcher with two CPU processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_zipit
from tests.helpers.models import hf_vit, images, tiny


def merge(launcher, digits, digits_data, out, *more, cache):
    options = [*more, "--method", "mudsc-zip", "--calibrate", "batchnorm"]
    options += ["--data", digits_data, "--data", f"{digits_data}:test", "--num-images", 75, "--batch-size", 16]
    command = [sys.executable, "-m", *launcher, "merge", *digits, *options, "--cut", "layer2", "-o", out]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_ZIPIT_CACHE": str(cache)}
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, load_file(out / "model.safetensors")


TWO = ["torch.distributed.run", "--nproc_per_node", "2", "-m", "hf_zipit"]


@pytest.mark.slow
def test_two_processes_merge_as_one(digits, digits_data, tmp_path):
    """Statistics, matching, and batch norms over an odd number of uneven batches; then again from the cache."""
    cache = tmp_path / "cache"
    printed, two = merge(TWO, digits, digits_data, tmp_path / "two", cache=cache)
    _, one = merge(["hf_zipit"], digits, digits_data, tmp_path / "one", "--no-cache", cache=cache)
    assert printed.strip() == str(tmp_path / "two")
    assert list(two) == list(one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert two["trunk.bn1.num_batches_tracked"] == 3  # groups of all processes together

    kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(kept) == 6
    _, again = merge(TWO, digits, digits_data, tmp_path / "again", cache=cache)
    assert all(torch.equal(again[name], value) for name, value in two.items())
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == kept


@pytest.mark.slow
def test_two_processes_choose_and_judge_as_one(digits, digits_data, tmp_path):
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    configs = []
    for name, launcher in (("two", TWO), ("one", ["hf_zipit"])):
        options = ["--data", digits_data, "--num-images", 100, "--no-cache", "-o", tmp_path / name]
        command = [sys.executable, "-m", *launcher, "merge", *digits, *options]
        done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("The merge should keep") == 1
        configs.append(json.loads((tmp_path / name / "config.json").read_text())["zipit"])
    two, one = configs
    assert two["choice"] == one["choice"]
    assert two["recipe"] == one["recipe"]
    assert {task: mine["images"] for task, mine in two["verdict"]["tasks"].items()} == {
        task: mine["images"] for task, mine in one["verdict"]["tasks"].items()
    }
    assert two["verdict"]["kept"] == pytest.approx(one["verdict"]["kept"], abs=0.01)


def calibrated(calibrate, batch_size):
    """Seven batches of 4 of 26 images, or one, for both tasks; the classifiers read more units than that.

    A refit for the joint prediction gets half of them for each task.
    """
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    options = {"calibrate": calibrate, "batch_size": batch_size, "tasks": ["a", "b"]}
    data = [images(13, seed=seed) for seed in (0, 1)] if calibrate == "refit-joint" else images(26)
    merged = hf_zipit.merge(sources, data, **options)
    return {f"{calibrate}.{name}": value.contiguous() for name, value in merged.state_dict().items()}


def with_heads(batch_size):
    """A merge of ViTs that keeps the heads of both."""
    options = {"method": "select", "calibrate": "none", "batch_size": batch_size, "cache": False}
    merged = hf_zipit.merge([hf_vit(0), hf_vit(1)], images(26), **options)
    return {f"heads.{name}": value.contiguous() for name, value in merged.state_dict().items()}


@pytest.mark.slow
def test_two_processes_calibrate_as_one(tmp_path):
    """Normal equations, samples, what classifiers read and what is chosen, over batches that two processes share.

    A repair corrects batch by batch, so that it depends on their size, but not on the processes that share them.
    """
    out = tmp_path / "two.safetensors"
    command = [sys.executable, "-m", *TWO[:-1], "tests.merging.test_processes", out]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two, one = load_file(out), calibrated("refit", 32) | calibrated("repair", 4) | calibrated("refit-joint", 32)
    one |= with_heads(32)
    assert set(two) == set(one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":  # one of the processes of the test above
    state = calibrated("refit", 4) | calibrated("repair", 4) | calibrated("refit-joint", 4) | with_heads(4)
    assert torch.distributed.get_world_size() == 2
    if torch.distributed.get_rank() == 0:
        save_file(state, sys.argv[1])
    torch.distributed.destroy_process_group()

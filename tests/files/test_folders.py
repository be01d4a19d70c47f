"""A folder appears complete or not at all: errors, full disks, and processes killed at any moment."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import hf_zipit
from hf_zipit.errors import OutputError
from hf_zipit.files.folders import write_atomically
from hf_zipit.files.names import temporary_name
from hf_zipit.saving import save as saving

WRITER = """
import sys, pathlib
from hf_zipit.files.folders import write_atomically
from hf_zipit.files.names import temporary_name
for number in range(10**9):
    with write_atomically(pathlib.Path(sys.argv[1])) as folder:
        for name in "abc":
            (folder / name).write_text(str(number) * 10**5)
"""


def killed_at_some_moment(pid, seconds):
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_folder_is_whole_whenever_its_writer_is_killed(tmp_path):
    target = tmp_path / "out"
    seen = 0
    for attempt in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)])
        while not any(tmp_path.iterdir()):
            assert writer.poll() is None, "the writer ended before it wrote anything"
            time.sleep(0.01)
        killed_at_some_moment(writer.pid, 0.15 + 0.013 * attempt)
        writer.wait()
        if target.exists():
            seen += 1
            texts = [(target / name).read_text() for name in "abc"]
            assert texts[0] == texts[1] == texts[2]
    assert seen
    before = (target / "a").read_text() if target.exists() else None
    with pytest.raises(OutputError, match="no luck"), write_atomically(target):
        raise OSError("no luck")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what was left of the killed ones is gone
    assert before is None or (target / "a").read_text() == before


def test_an_earlier_folder_comes_back_if_its_replacement_never_arrived(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    name = temporary_name(tmp_path / "out", "old").replace(f".{os.getpid()}.", f".{finished.pid}.")
    (tmp_path / name).mkdir()
    (tmp_path / name / "a").write_text("earlier")
    with pytest.raises(OutputError, match="no luck"), write_atomically(tmp_path / "out"):
        raise OSError("no luck")
    assert (tmp_path / "out" / "a").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def merged(digits):
    return hf_zipit.merge(digits, method="average", calibrate="none")


def write_for_ever(model, target):
    while True:
        saving.save(model, target, overwrite=True)


@pytest.mark.sample(1)
def test_a_merge_is_whole_whenever_saving_it_is_killed(merged, tmp_path):
    target = tmp_path / "out"
    files = {path.name: path.stat().st_size for path in saving.save(merged, target).iterdir()}
    expected = load_file(target / "model.safetensors")
    fork = multiprocessing.get_context("fork")
    found = 0
    for attempt in range(5):
        writer = fork.Process(target=write_for_ever, args=(merged, target))
        writer.start()
        killed_at_some_moment(writer.pid, 0.3 + 0.07 * attempt)
        writer.join()
        if target.exists():
            found += 1
            assert {path.name: path.stat().st_size for path in target.iterdir()} == files
            state = load_file(target / "model.safetensors")
            assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert found
    saving.save(merged, target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("limit", [10, 3_000, 100_000])
def test_a_disk_that_is_full_leaves_nothing(merged, tmp_path, limit):
    """A real write that fails: no file may grow beyond the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*out: .*[Ff]ile too large"):
            saving.save(merged, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []

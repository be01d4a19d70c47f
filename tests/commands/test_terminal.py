"""What a person sees in a terminal: progress with images per second, colors, and none of it elsewhere."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import torch

from hf_zipit.commands.terminal import leave_group
from tests.conftest import ROOT

COLOR = "\x1b["


def in_terminal(*arguments, **environment):
    """What a new process prints on a terminal, and its exit code."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # rows and columns
    plain = {key: value for key, value in os.environ.items() if key != "HF_HUB_DISABLE_PROGRESS_BARS"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from hf_zipit.cli import run; run()", *map(str, arguments)],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**plain, "PYTHONPATH": str(ROOT), **environment},
    )
    os.close(side)
    seen = b""
    while True:
        try:
            part = os.read(main, 2**16)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(main)
    return seen.decode(), process.wait()


def test_a_terminal_shows_stage_images_per_second_time_left_and_colors(digits, digits_data, tmp_path):
    merge = ["merge", *digits, "--data", digits_data, "--num-images", 200, "--batch-size", 16]
    seen, code = in_terminal(*merge, "-o", tmp_path / "merged")
    assert code == 0, seen
    for stage in ("Reading activations", "Refitting the trunk"):
        assert re.search(rf"{stage}: +\d+%\|.*\d/\d+ \[\d\d:\d\d<", seen), stage
    assert re.search(r"Reading activations: +\d+%\|.*/\d+ \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s\]", seen)
    assert f"{COLOR}32mThe merge should keep" in seen
    assert "Loading weights" not in seen


def test_quiet_and_no_color(digits, digits_data, tmp_path):
    merge = ["merge", *digits, "--data", digits_data, "--num-images", 100, "--calibrate", "none"]
    seen, code = in_terminal(*merge, "-q", "-o", tmp_path / "quiet")
    assert (code, seen.split()) == (0, [str(tmp_path / "quiet")])
    seen, code = in_terminal("merge", tmp_path / "nothing", "-o", tmp_path / "out", NO_COLOR="1")
    assert code == 2
    assert COLOR not in seen
    seen, _ = in_terminal("merge", tmp_path / "nothing", "-o", tmp_path / "out")
    assert f"{COLOR}31mError{COLOR}0m: " in seen


def test_output_that_is_no_terminal_has_no_colors_and_no_bars(run, digits, digits_data, tmp_path):
    merge = ["merge", *digits, "--data", digits_data, "--num-images", 200, "-o", tmp_path / "merged"]
    code, printed, told = run(*merge)
    assert code == 0
    assert COLOR not in printed + told
    assert "images/s" not in told
    assert run("eval", tmp_path / "merged", "--data", digits_data)[1].startswith("model ")


def test_without_a_folder_the_result_is_named_after_the_models(run, digits, digits_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    merge = ["merge", *digits, "--data", digits_data, "--num-images", 64, "--no-verdict", "--calibrate", "none"]
    name = "merged-digits-0-4-digits-5-9"
    for folder in (name, f"{name}-2"):
        code, printed, told = run(*merge)
        assert (code, printed.strip()) == (0, folder)
        assert f"the result goes to {folder}" in told
        assert (tmp_path / folder / "model.safetensors").is_file()
    assert run(*merge, "--overwrite")[1].strip() == name
    assert sorted(file.name for file in tmp_path.iterdir()) == [name, f"{name}-2"]
    fold = ["fold", digits[0], "--width", 0.5, "--data", digits_data, "--num-images", 64, "--no-verdict"]
    assert run(*fold)[1].strip() == "smaller-digits-0-4"


def test_a_process_leaves_the_group_of_its_launcher(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'met'}", rank=0, world_size=1)
    leave_group()
    assert not torch.distributed.is_initialized()
    leave_group()  # without one there is nothing to do

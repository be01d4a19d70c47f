"""Merges on another device than the CPU: every tensor has to be where the others are, as on a GPU."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("model", ["resnet", "vit", "convnext"])
def test_another_device_makes_the_same_merge(model):
    command = [sys.executable, "-m", "tests.helpers.on_two_devices", model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    assert rows
    assert all(weights < 1e-3 and answers < 1e-4 for weights, answers in rows), rows

"""Merges that version 0.1.0 saved load as they did, with the plugin and without it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from hf_zipit.recipe import read_recipe
from hf_zipit.saving.load import load_merged

SAVED = Path(__file__).parents[1] / "data" / "saved_by_0_1_0"
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
KINDS = {"classifier": AutoModelForImageClassification, "multitask": AutoModel}
WITHOUT_THE_PLUGIN = """
import sys
sys.modules["hf_zipit"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification
folder = sys.argv[1]
expected = load_file(folder + "/expected.safetensors")
kind = AutoModel if folder.endswith("multitask") else AutoModelForImageClassification
model = kind.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    out = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
for task, logits in expected.items():
    found = out.task_logits[task] if hasattr(out, "task_logits") else out.task_outputs[task].logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
print(type(model).__module__.partition(".")[0])
"""


def answers(model):
    """The logits of every task."""
    with torch.no_grad():
        out = model(PIXELS)
    tasks = getattr(out, "task_logits", None)
    return tasks or {task: answer.logits for task, answer in out.task_outputs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_plugin(kind):
    folder = SAVED / kind
    expected = load_file(folder / "expected.safetensors")
    for model in (load_merged(folder), KINDS[kind].from_pretrained(folder).eval()):
        assert type(model).__module__.startswith("hf_zipit.models.")
        found = answers(model)
        assert list(found) == model.config.tasks
        for task, logits in found.items():
            torch.testing.assert_close(logits, expected[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param("classifier", marks=pytest.mark.slow), "multitask"])
@pytest.mark.slow
def test_without_the_plugin(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    command = [sys.executable, "-c", WITHOUT_THE_PLUGIN, str(SAVED / kind)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "transformers_modules"


@pytest.mark.parametrize("kind", KINDS)
def test_their_recipes_are_read(kind):
    file = SAVED / kind / "zipit_config.yml"
    recorded = yaml.safe_load(file.read_text())
    recipe = read_recipe(file)
    assert recipe.method == recorded["method"]
    assert recipe.tasks == recorded["tasks"]
    assert recipe.generator == "hf-zipit 0.1.0"

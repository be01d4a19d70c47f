"""`hf zipit ...` through the real `hf`, and completion through the shell's protocol."""

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from huggingface_hub.cli.extensions import ExtensionManifest

import hf_zipit

SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def hf(tmp_path):
    """Run `hf` where hf-zipit is installed as its extension."""
    script = tmp_path / "hf-zipit"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hf_zipit "$@"\n')
    script.chmod(0o755)
    known = {"owner": "owner", "repo": "hf-zipit", "repo_id": "owner/hf-zipit", "type": "python"}
    manifest = ExtensionManifest(
        **known, short_name="zipit", executable_path=str(script), installed_at=datetime(2026, 1, 1)
    )
    manifest.save(tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-zipit")

    def run(*arguments):
        env = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        command = [str(SCRIPTS / "hf"), *arguments]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


@pytest.mark.slow
def test_hf_runs_it_and_hands_its_exit_code_on(hf, tmp_path):
    done = hf("zipit", "--version")
    assert done.returncode == 0
    assert done.stdout.strip() == hf_zipit.__version__
    (tmp_path / "recipe.yml").write_text("colour: red")
    done = hf("zipit", "merge", "recipe.yml", "-o", "out")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("Error: recipe.yml: unknown key 'colour'")


def test_the_shell_completes_commands_and_flags():
    def completed(words):
        env = {**os.environ, "_HF_ZIPIT_COMPLETE": "complete_bash", "COMP_WORDS": words}
        env["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        code = "import sys; sys.argv = ['hf-zipit']; from hf_zipit.cli import run; run()"
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        return done.stdout.split()

    assert completed("hf-zipit me") == ["merge"]
    assert "--calibrate" in completed("hf-zipit merge --ca")

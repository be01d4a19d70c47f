"""The built wheel, unpacked elsewhere, finds its specs and says that it is typed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_ships_the_specs_and_its_types(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from hf_zipit.specs import parser; print(parser.__file__, [s.file for s in parser.list_specs()])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert str(site) in done.stdout, done.stderr
    assert (site / "hf_zipit" / "py.typed").exists()
    assert (site / "hf_zipit" / "app" / "style.css").exists()
    for spec in (ROOT / "model_specs").glob("*.yaml"):
        assert spec.name in done.stdout

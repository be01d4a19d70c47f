"""The documentation that comes from the code is up to date, and nothing in it is listed by hand."""

import subprocess
import sys
from pathlib import Path

from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.matching.methods import METHODS
from hf_zipit.recipe import Recipe

ROOT = Path(__file__).parents[1]


def test_options_methods_and_calibrations_are_those_of_the_code():
    done = subprocess.run([sys.executable, ROOT / "docs" / "make.py", "--check"], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


def test_every_option_method_and_calibration_is_documented():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    for name in [*METHODS, *CALIBRATIONS, *(key for key in Recipe.model_fields if key not in ("sources", "generator"))]:
        assert f"| `{name}`" in page, name

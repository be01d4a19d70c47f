"""The registry of calibrations: light to import, and every entry leads to its function."""

import inspect
import subprocess
import sys

import pytest

from hf_zipit.calibration.methods import CALIBRATIONS, Calibration, check_calibration, stages_of
from hf_zipit.errors import OptionError


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_every_entry_resolves_to_a_documented_function_of_a_merge(name):
    entry = CALIBRATIONS[name]
    function = entry.resolve()
    assert function.__name__ == name.replace("-", "_")
    assert function.__doc__
    assert next(iter(inspect.signature(function).parameters)) == "merge"
    assert entry.summary
    assert "\n" not in entry.summary


def test_a_calibration_may_be_a_function():
    seen = []
    Calibration(seen.append).run("a merge")
    assert seen == ["a merge"]


def test_what_runs_before():
    assert {name: stages_of(name)[:-1] for name in CALIBRATIONS if len(stages_of(name)) > 1} == {
        "refit-joint": ["refit"],
        "refit-heads": ["batchnorm"],
    }
    assert [name for name, entry in CALIBRATIONS.items() if entry.joint] == ["refit-joint"]


def test_an_unknown_calibration_is_refused():
    check_calibration("refit")
    with pytest.raises(OptionError, match="unknown calibration 'hope'; calibrations: auto, batchnorm, repair, refit, "):
        check_calibration("hope")


def test_listing_the_calibrations_loads_no_library():
    code = "import hf_zipit.calibration.methods, sys; print([m for m in ('torch', 'accelerate') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

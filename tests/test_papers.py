"""The scripts that rerun papers' tables, on tiny data."""

import importlib
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hf_zipit.comparison.papers import PAPERS
from tests.test_examples import cifar

FOLDER = Path(__file__).parents[1] / "benchmarks" / "papers"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "rerun")
ROWS = {  # script and setting -> rows that its table has
    ("zipit", 1): ["zip +batchnorm .* 79.1$", "zip, cut layer2 +batchnorm .* 83.8$", "select +refit-joint .* - *$"],
    ("mudsc", 4): ["average +batchnorm .* 84.3 +70.2$", "mudsc-zip +batchnorm .* 84.4 +70.1$"],
    ("pleas", 1): ["permute +refit ", "select +refit +[0-9.]+$"],
    ("folding", 1): ["weight-kmeans +repair .* 71.0$"],
    ("partial_fusion", 1): ["partial-ot, width 1.8 +batchnorm .* 90.6$"],
}


@pytest.fixture
def papers(monkeypatch):
    """The shared module of the scripts, with a quick run that is quicker still."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    found = importlib.import_module("rerun")
    monkeypatch.setitem(found.SCALES, "quick", replace(found.SCALES["quick"], images=16, tested=16))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("script", "number"), ROWS)
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_table_is_made_beside_the_papers_figures(script, number, papers, tmp_path, monkeypatch, capsys):
    data = cifar(tmp_path / "data")
    settings = importlib.import_module(script).SETTINGS
    needed = {name for one in settings for name in (one.data, one.base) if name}
    places = [word for name in needed for word in (f"--{name}", str(data))]
    command = [script, "--quick", "--only", str(number), *places, "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    torch.manual_seed(0)
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "No evidence." in printed
    for row in [*ROWS[script, number], "ensemble +-", "random +[a-z-]+ ", "first-parent +[a-z-]+ "]:
        assert re.search(rf"^{row}", printed, re.MULTILINE), (row, printed)
    assert list((tmp_path / "out").glob("*/results.tex"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_names_a_paper_and_rows_that_it_has(script, papers):
    module = importlib.import_module(script)
    paper = PAPERS[script.replace("_", "-")]
    for setting in module.SETTINGS:
        methods = {row.split(",")[0] for row in setting.published} - {"ensemble"}
        known = {row.get("method") for row in paper.rows} | {row.get("preset") for row in paper.rows}
        assert methods - known <= {"mudsc-zip"}  # which the preset `mudsc` sets

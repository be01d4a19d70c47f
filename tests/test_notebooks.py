"""The notebooks: each runs from top to bottom without a network, and holds nothing of the machine it was written on."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.hub import OWNER

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
NAMES = ["1_first_merge", "2_partial_merges", "3_one_base", "4_vit_to_hub"]
CONTROL = "control: first-parent, refit"


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture
def run_notebook(monkeypatch, tmp_path):
    """Run a notebook in a process of its own, and return its table of results and everything that it printed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def run(name):
        notebook = read(name)
        notebook.cells.append(nbformat.v4.new_code_cell("print(results.to_json(orient='split'))"))
        metadata = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=900, kernel_name="python3", resources=metadata).execute()
        *printed, table = [
            output.text
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if output.output_type == "stream" and output.name == "stdout"
        ]
        table = json.loads(table)
        rows = ["/".join(row) if isinstance(row, list) else row for row in table["index"]]
        values = {
            row: dict(zip(table["columns"], line, strict=True)) for row, line in zip(rows, table["data"], strict=True)
        }
        return values, "".join(printed)

    return run


def test_every_notebook_is_listed_on_the_page_of_examples():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    page = (ROOT / "docs" / "start" / "examples.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"(../../examples/notebooks/{name}.ipynb)" not in page] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_holds_no_outputs_and_nothing_of_a_machine(name):
    """Outputs differ between machines and releases, and hold paths: they are made by running the notebook."""
    notebook = read(name)
    nbformat.validate(notebook)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_first_merge(run_notebook):
    results, printed = run_notebook("1_first_merge")
    assert "worth making: True" in printed
    assert results["merged"]["average"] > 98
    assert results["averaged weights"]["average"] < 50
    assert results["merged"]["joint"] > results["control: one trunk, refit"]["joint"] + 5
    assert results["ensemble"]["forward passes"] == 2


@pytest.mark.slow
def test_partial_merges(run_notebook):
    results, printed = run_notebook("2_partial_merges")
    for method in ("zip", "select, refit"):
        costs = [results[f"{method}/{cut}"]["forward passes"] for cut in ("none", "layer2", "layer1")]
        assert 1 <= costs[0] < costs[1] < costs[2] < 2
    assert results["zip/layer1"]["joint"] > results["zip/none"]["joint"] + 2
    assert results["select, refit/none"]["joint"] > results[f"{CONTROL}/none"]["joint"] + 2
    assert "layer2" in printed  # among the cuts that `inspect` lists


@pytest.mark.slow
def test_one_base(run_notebook):
    results, _ = run_notebook("3_one_base")
    for measure in ("average", "joint"):
        assert results["the plain command"][measure] > results["average, no images"][measure]
        assert results["the plain command"][measure] > results[CONTROL][measure]


@pytest.mark.slow
@pytest.mark.parametrize("repository", [None, "user/vit-digits"])
def test_from_a_vit_to_the_hub(repository, run_notebook, hub_server, monkeypatch, tmp_path):
    if repository:
        hub_server.reset()
        changes = {
            "HF_ENDPOINT": hub_server.endpoint,
            "HF_TOKEN": OWNER,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        for name, value in {**changes, "HF_HOME": str(tmp_path / "home"), "MERGED_REPO": repository}.items():
            monkeypatch.setenv(name, value)
    else:
        monkeypatch.delenv("MERGED_REPO", raising=False)
    results, printed = run_notebook("4_vit_to_hub")
    assert results["merged"]["average"] > results["heads paired"]["average"] - 1
    assert results["merged"]["joint"] > results[CONTROL]["joint"]
    answers, digits = (line.partition(":")[2] for line in printed.splitlines() if line[:7] in ("answers", "digits:"))
    assert (
        sum(
            a == b
            for a, b in zip(json.loads(answers.replace("'", '"')), json.loads(digits.replace("'", '"')), strict=True)
        )
        >= 6
    )
    if repository:
        assert "model.safetensors" in hub_server.repos[repository].at()[1]

"""Odd inputs of every kind, held against the law. A failure names the seed and the number of the case.

    HF_ZIPIT_FUZZ_SEED=3 pytest "tests/fuzz/test_fuzz.py::test_the_law[configs-17]"

runs one case again. HF_ZIPIT_FUZZ_CASES is the number of cases of all kinds; those after the first 150 are slow.
"""

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch

from tests.fuzz import configs, flags, folders, merges, pictures, recipes, tables, weights, world
from tests.fuzz.law import Case, check, outputs
from tests.fuzz.world import World

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # `datasets` leaves files open
SEED = int(os.environ.get("HF_ZIPIT_FUZZ_SEED", "0"))
CASES = int(os.environ.get("HF_ZIPIT_FUZZ_CASES", "3000"))
QUICK = 150
OFTEN = 7  # of the quick cases, every seventh is run twice
KINDS: dict[str, Callable[[Random, World, Path], Case]] = {
    module.__name__.rpartition(".")[2]: module.make
    for module in (configs, weights, pictures, folders, tables, recipes, flags, merges)
}
SHARES = {"configs": 4, "weights": 4, "recipes": 4, "flags": 2, "merges": 2, "tables": 1, "folders": 1, "pictures": 1}
TURNS = [kind for turn in range(4) for kind, share in SHARES.items() if turn < share]  # the slow kinds come up less


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """What all cases start from."""
    yield world.build(tmp_path_factory.mktemp("world"))
    gc.collect()  # while warnings about open files are ignored


@pytest.fixture(autouse=True)
def surroundings(hub, tmp_path_factory, monkeypatch):
    """An empty Hub, and a cache of data sets of our own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def made(kind: str, number: int, inputs: World, folder: Path) -> Case:
    """Case `number` of a kind; it depends on the seed alone."""
    folder.mkdir()
    return KINDS[kind](Random(f"{SEED} {kind} {number}"), inputs, folder)


def every_case() -> list[object]:
    """Kinds and numbers, in turns. Those after the first `QUICK` are slow."""
    counts = dict.fromkeys(KINDS, 0)
    found: list[object] = []
    for i, kind in enumerate(itertools.islice(itertools.cycle(TURNS), CASES)):
        number = counts[kind]
        again = i >= QUICK or i % OFTEN == 0
        counts[kind] += 1
        marks = [pytest.mark.slow] * (i >= QUICK)
        found.append(pytest.param(kind, number, again, marks=marks, id=f"{kind}-{number}"))
    return found


@pytest.mark.parametrize(("kind", "number", "again"), every_case())
def test_the_law(kind, number, again, inputs, tmp_path):
    case = made(kind, number, inputs, tmp_path / "case")
    try:
        check(case, tmp_path / "case", inputs.home, again)
    except AssertionError as error:
        pytest.fail(f"seed {SEED}, {kind} {number}: {error}", pytrace=False)


AGAIN = """
import sys, torch
from pathlib import Path
from tests.fuzz.law import outputs

torch.set_num_threads(1)
torch.save([outputs(Path(folder)) for folder in sys.argv[2:]], sys.argv[1])
"""


@pytest.mark.slow
def test_a_new_process_repeats_the_outputs(inputs, tmp_path):
    saved = []
    for number in range(40):
        for kind in ("configs", "weights", "recipes", "merges"):
            folder = tmp_path / f"{kind}-{number}"
            try:
                found = check(made(kind, number, inputs, folder), folder, inputs.home)
            except AssertionError:
                continue  # the test above tells
            saved += [found] if found else []
    assert len(saved) > 10
    subprocess.run([sys.executable, "-c", AGAIN, tmp_path / "outputs.pt", *saved], check=True, timeout=300)
    for folder, again in zip(saved, torch.load(tmp_path / "outputs.pt"), strict=True):
        for task, value in outputs(folder).items():
            assert torch.equal(value, again[task]), folder

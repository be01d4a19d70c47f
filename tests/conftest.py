"""Shared fixtures. Every test runs offline and quietly; tests of the Hub use a local server."""

import json
import os
import sys

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "NO_PROXY": "127.0.0.1",
    }
)

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_zipit import cli
from hf_zipit.commands.json_output import undocumented
from tests.helpers.hub import OWNER, Hub

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cache statistics in a new folder, so that no earlier run is reused."""
    os.environ["HF_ZIPIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits() -> list[Path]:
    """Folders of the two trained models of the demo."""
    return [ROOT / "examples" / "digits" / name for name in ("digits-0-4", "digits-5-9")]


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits as train.parquet and test.parquet."""
    sys.path.insert(0, str(ROOT / "examples"))
    from digits_data import write_parquet

    return write_parquet(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hub]:
    """The server behind `hub`."""
    with Hub().serve() as server:
        yield server


@pytest.fixture
def hub(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub. The real client in this process uses it: logged in, with an empty cache, without retry delays."""
    import huggingface_hub
    from huggingface_hub.utils import _http

    hub_server.reset()
    constants = huggingface_hub.constants
    for name, value in {
        "ENDPOINT": hub_server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    return hub_server


@pytest.fixture
def run(capsys, monkeypatch):
    """A function that runs `hf-zipit` in this process and returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-zipit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.run()
        printed = capsys.readouterr()
        if "--json" in arguments and not end.value.code:
            assert undocumented(json.loads(printed.out)) == []
        return end.value.code or 0, printed.out, printed.err

    return call


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For a test marked `sample(n)`, keep n evenly spaced parameter sets, and mark the others as slow."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample") and not item.get_closest_marker("slow"):
            groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for mine in groups.values():
        count = mine[0].get_closest_marker("sample").args[0]
        step = (len(mine) - 1) / max(1, count - 1)
        kept = {round(number * step) for number in range(count)}
        for number, item in enumerate(mine):
            if number not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def datasets_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same Hub, which the library of data sets uses too."""
    import datasets

    changes = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": tmp_path / "datasets"}
    for name, value in changes.items():
        monkeypatch.setattr(datasets.config, name, value)
    return hub

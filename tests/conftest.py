"""Offline for every test, and quiet; tests of the Hub get one on this machine."""

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
from tests.helpers.hub import OWNER, Hub

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Statistics are kept where nothing of an earlier run is found."""
    os.environ["HF_ZIPIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def digits() -> list[Path]:
    """The two trained models of the demo."""
    return [ROOT / "examples" / "digits" / name for name in ("digits-0-4", "digits-5-9")]


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as train.parquet and test.parquet."""
    import sys

    sys.path.insert(0, str(ROOT / "examples"))
    from digits_data import write_parquet

    return write_parquet(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def hub_server() -> Iterator[Hub]:
    with Hub().serve() as server:
        yield server


@pytest.fixture
def hub(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty Hub, and the real client of this process pointed at it: logged in, an empty cache, no waiting."""
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
    """Run the entry point; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hf-zipit", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.run()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return call

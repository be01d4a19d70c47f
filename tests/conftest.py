"""Offline for every test, and quiet."""

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
)

from pathlib import Path

import pytest
import torch

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

"""A working folder; processes of jobs in these tests load only what all of them need."""

import pytest

from hf_zipit.app import job


@pytest.fixture(scope="session", autouse=True)
def start_quickly():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "LOADED", ["hf_zipit.progress", "hf_zipit.commands.making"])
        yield


@pytest.fixture
def folder(tmp_path):
    """A working folder."""
    place = tmp_path / "work"
    place.mkdir()
    return place

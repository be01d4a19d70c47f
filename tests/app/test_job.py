"""Work in another process: its result, how far it is, and its end by itself, by force or by a fault."""

import time

import pytest

from hf_zipit.app import job as jobs
from hf_zipit.app.job import Job, moved
from tests.app import tasks


def appeared(path):
    """Wait until a file exists."""
    for _ in range(600):
        if path.exists():
            return True
        time.sleep(0.1)
    return False


def test_a_result_and_what_was_said_on_the_way():
    ended = []
    job = Job(tasks.add, 2, 3, title="Sum", then=ended.append).wait(120)
    assert (job.result, job.fault, job.cancelled) == (5, None, False)
    assert not job.running
    assert job.said == ["slow, but sure"] * 3
    assert ended == [job]
    job.cancel()
    assert not job.cancelled  # too late


def test_faults_are_one_line_without_a_traceback_or_a_token(capfd, monkeypatch):
    monkeypatch.delenv("HF_DEBUG", raising=False)
    assert Job(tasks.fail, "there is no image").wait(120).fault == "there is no image"
    broken = Job(tasks.break_down).wait(120)
    assert broken.fault.startswith("internal error (KeyError")
    assert "hf_abc" not in broken.fault
    gone = Job(tasks.vanish).wait(120)
    assert "exit code 7" in gone.fault
    assert gone.result is None
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancelled_work_ends_at_once(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(jobs, "GRACE", 0.5 if stubborn else 60)
    job = Job(tasks.write_for_ever, str(tmp_path / "out"), str(tmp_path / "begun"), stubborn)
    assert appeared(tmp_path / "begun")
    assert job.running
    job.cancel()
    assert not job.running
    assert not job.process.is_alive()
    assert job.cancelled
    assert (job.result, job.fault) == (None, None)
    left = {path.name for path in tmp_path.iterdir()} - {"begun"}
    assert bool(left) == stubborn  # a killed process leaves what `tidy` removes


def test_stages_lie_inside_each_other_and_end():
    stages = moved((), "outer", 0, 2)
    stages = moved(stages, "inner", 0, None)
    assert [stage.label for stage in stages] == ["outer", "inner"]
    assert stages[1].seconds_left is None
    stages = moved(moved(stages, "inner", 3, None), "outer", 1, 2)
    assert [(stage.label, stage.done) for stage in stages] == [("outer", 1)]
    assert stages[0].seconds_left >= 0
    assert moved(stages, "outer", 2, 2) == ()
    assert moved((), "empty", 0, 0) == ()


def test_many_steps_are_not_all_sent(monkeypatch):
    sent = []
    reports = jobs._Reports(type("Wire", (), {"send": lambda self, *message: sent.append(message[2])})())
    for done in range(1001):
        reports("fast", done, 1000)
    assert sent[0] == 0
    assert sent[-1] == 1000
    assert len(sent) < 500

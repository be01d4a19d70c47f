"""Where a folder can be written: permissions, links, mount points, names; found out before any work."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.files import folders
from hf_zipit.files.folders import recover, write_atomically
from hf_zipit.files.names import abandoned, temporary_name
from hf_zipit.files.place import check_place
from hf_zipit.files.single import write_file

NOT_ROOT = pytest.mark.skipif(os.getuid() == 0, reason="nothing is forbidden to root")


def write(target, **files):
    with write_atomically(target) as folder:
        for name, text in (files or {"a": "new"}).items():
            (folder / name).write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def umask():
    """A function that sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o007, 0o022])
def test_the_umask_is_followed(tmp_path, umask, mask):
    umask(mask)
    with write_atomically(tmp_path / "out") as folder:
        os.close(os.open(folder / "private", os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries write
    write_file(tmp_path / "file", "text")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "out" / "private").stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_folder_of_a_group_stays_one(tmp_path):
    tmp_path.chmod(0o2775)
    write(tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o2000
    (tmp_path / "made").mkdir()
    (tmp_path / "made").chmod(0o2750)
    write(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o7777 == 0o2750


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    check_place(tmp_path / "link")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk") == {"a": "new"}


def test_a_link_to_nothing_is_followed_if_its_disk_is_there(tmp_path):
    (tmp_path / "link").symlink_to("later")
    (tmp_path / "far").symlink_to(tmp_path / "disk" / "later")
    (tmp_path / "round").symlink_to("round")
    check_place(tmp_path / "link")
    write(tmp_path / "link")
    assert content(tmp_path / "later") == {"a": "new"}
    with pytest.raises(OutputError, match=r"far is a link to .*later, but .*disk does not exist"):
        check_place(tmp_path / "far")
    with pytest.raises(OutputError, match="leads to itself"):
        check_place(tmp_path / "round")


def test_the_current_folder_is_written_into(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    number = os.stat(".").st_ino
    check_place(Path("."))
    write(Path("."))
    write(Path("."), b="newer")
    assert os.stat(".").st_ino == number
    assert content(Path(".")) == {"b": "newer"}
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_that_cannot_be_moved_is_written_into(tmp_path, monkeypatch, swaps):
    """As a mount point, or a folder of somebody else in a shared one: the system refuses to rename it."""
    target = tmp_path / "out"
    write(target, a="old", b="old")
    rename = Path.rename

    def busy(self, other):
        if self == target:
            raise OSError(16, "Device or resource busy")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", busy)
    monkeypatch.setattr(folders, "_swap", lambda a, b: False)
    monkeypatch.setattr(folders, "must_stay", lambda place: swaps)
    number = target.stat().st_ino
    write(target, a="new")
    assert target.stat().st_ino == number
    assert content(target) == {"a": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_file_system_is_copied_to(tmp_path, monkeypatch):
    rename = Path.rename

    def elsewhere(self, other):
        if self.parent.name.startswith(".zipit") and not Path(other).name.startswith(".zipit"):
            raise OSError(18, "Invalid cross-device link")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", elsewhere)
    monkeypatch.setattr(folders, "must_stay", lambda place: True)
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", a="new")
    assert content(tmp_path / "out") == {"a": "new"}


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("swap", [True, False])
def test_an_interruption_at_any_step_leaves_the_earlier_folder(tmp_path, monkeypatch, stays, swap):
    target = tmp_path / "out"
    earlier = {"config.json": "old", "a": "old", "b": "old"}
    write(target, **earlier)
    rename = Path.rename
    monkeypatch.setattr(folders, "must_stay", lambda place: stays)
    if not swap:
        monkeypatch.setattr(folders, "_swap", lambda a, b: False)

    def interrupted_at(number):
        steps = iter(range(100))

        def interrupted(self, other):
            if next(steps) == number:
                raise KeyboardInterrupt
            return rename(self, other)

        return interrupted

    for number in range(6):
        monkeypatch.setattr(Path, "rename", interrupted_at(number))
        try:
            write(target, **{"config.json": "new", "a": "new", "c": "new"})
        except KeyboardInterrupt:
            assert content(target) == earlier
        else:
            assert content(target) == {"config.json": "new", "a": "new", "c": "new"}
            monkeypatch.setattr(Path, "rename", rename)
            write(target, **earlier)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, pathlib, sys
from hf_zipit.files import folders
target, at = pathlib.Path(sys.argv[1]), int(sys.argv[2])
os.chdir(target)
rename, done = pathlib.Path.rename, []
def dying(self, other):
    if len(done) == at:
        os.kill(os.getpid(), 9)
    done.append(other)
    return rename(self, other)
pathlib.Path.rename = dying
with folders.write_atomically(target) as folder:
    for name in ("config.json", "a", "c"):
        (folder / name).write_text("new")
"""


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_folder_that_was_being_written_into_when_the_process_was_killed_is_restored(tmp_path, at):
    target = tmp_path / "out"
    earlier = {"config.json": "old", "a": "old", "b": "old"}
    write(target, **earlier)
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(at)])
    assert done.returncode == -signal.SIGKILL
    assert (target / "config.json").exists() == (at == 0)  # without it nothing takes the folder for a model
    recover(target)
    assert content(target) == earlier


def test_what_other_machines_and_living_processes_write_is_left_alone(tmp_path):
    target = tmp_path / "out"
    mine = temporary_name(target, "new")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = mine.replace(f".{os.getpid()}.", f".{dead.pid}.")
    elsewhere = gone.replace(".new.", ".new.other-")
    other = temporary_name(tmp_path / "other", "new").replace(f".{os.getpid()}.", f".{dead.pid}.")
    for name in (mine, gone, elsewhere, other):
        (tmp_path / name).mkdir()
    assert [path.name for path in abandoned(tmp_path, target, "new")] == [gone]
    write(target)
    assert {path.name for path in tmp_path.iterdir()} == {"out", mine, elsewhere, other}


def test_two_threads_never_choose_one_name(tmp_path):
    assert len({temporary_name(tmp_path / "out", "new") for _ in range(100)}) == 100
    assert len(temporary_name(tmp_path / ("x" * 255), "new")) < 200


def test_names_that_no_folder_can_have_are_refused(tmp_path):
    for name in ("a\nb", "a\0b", "a\udcff"):
        with pytest.raises(OptionError, match="control characters or bad encoding"):
            check_place(tmp_path / name)
    with pytest.raises(OptionError, match="File name too long"):
        check_place(tmp_path / "new" / ("x" * 300))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OptionError, match="file is not a folder"):
        check_place(tmp_path / "file" / "out")
    check_place(Path(f"{tmp_path}/new/"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    with pytest.raises(OutputError, match="no luck"), write_atomically(tmp_path / "a" / "b" / "out"):
        raise OSError("no luck")
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_system_puts_into_its_root_does_not_count(tmp_path):
    (tmp_path / "lost+found").mkdir()
    assert folders.is_empty(tmp_path)
    (tmp_path / "mine").touch()
    assert not folders.is_empty(tmp_path)


@NOT_ROOT
def test_a_folder_without_permission_is_found_before_the_work(tmp_path):
    (tmp_path / "shut").mkdir()
    (tmp_path / "open").mkdir()
    (tmp_path / "shut").chmod(0o555)
    with pytest.raises(OutputError, match="Permission denied"):
        check_place(tmp_path / "shut" / "out")
    tmp_path.chmod(0o555)
    try:
        check_place(tmp_path / "open")  # that its parent is read-only does not matter
        write(tmp_path / "open")
        assert content(tmp_path / "open") == {"a": "new"}
    finally:
        tmp_path.chmod(0o755)


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    def failing(path):
        path.write_text("half")
        raise KeyboardInterrupt

    write_file(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", failing)
    assert content(tmp_path) == {"a": "old", "link": "old"}
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path) == {"a": "new", "link": "new"}

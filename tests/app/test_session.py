"""The steps of a user without a page: forms, one thing at a time, what is left of cancelled merges, tokens."""

import shutil
import types
import zipfile
from pathlib import Path

import PIL.Image
import pytest

import hf_zipit
from hf_zipit.app import job as jobs
from hf_zipit.app import session as sessions
from hf_zipit.app import work
from hf_zipit.app.places import Places
from hf_zipit.app.session import Form, Session
from hf_zipit.commands.making import Order
from hf_zipit.costs import cost_of, count_flops
from hf_zipit.errors import OptionError, OutputError, ZipItError
from hf_zipit.recipe import Recipe
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import NOTHING
from hf_zipit.sources.load import load_source
from tests.app import tasks
from tests.app.test_job import appeared
from tests.helpers.hub import OWNER

TOKEN = "a-token-of-another-kind"


class Here:
    """A job that is done at once, in this process."""

    running = cancelled = False
    stages = said = ()
    began = 0.0

    def __init__(self, run, *arguments, title, then):
        self.title, self.result, self.fault = title, None, None
        try:
            self.result = run(*arguments)
        except ZipItError as error:
            self.fault = str(error)
        then(self)


class Endless(Here):
    """A job that runs until it is cancelled."""

    def __init__(self, run, *arguments, title, then):
        self.title, self.result, self.fault, self.then = title, None, None, then
        self.running = True

    def cancel(self):
        self.running, self.cancelled = False, True
        self.then(self)


@pytest.fixture
def work_folder(folder, digits, digits_data):
    """A working folder with the models and images of the demo."""
    for place in (*digits, digits_data):
        shutil.copytree(place, folder / place.name)
    return folder


@pytest.fixture
def form():
    return Form(["digits-0-4", "digits-5-9"], ["digits"], method="average", calibrate="none", num_images=64)


def started(folder, start):
    return Session(Places(folder), start=start)


def test_a_merge_is_written_judged_and_tried(work_folder, form):
    session = started(work_folder, Here)
    session.merge(form, 0, "out")
    made = session.outcome
    assert session.job.fault is None
    assert made.folder == work_folder / "out"
    assert "The merge should keep" in made.summary
    assert "trunk of" in made.chosen
    assert made.table == ""
    assert made.picture.read_bytes()[:4] == b"\x89PNG"
    assert len(made.samples) == work.SAMPLES
    with PIL.Image.open(made.samples[0]) as image:
        found = session.try_image(image)
    assert [one.task for one in found.tasks] == ["digits-0-4", "digits-5-9"]
    with zipfile.ZipFile(session.zipped()) as packed:
        assert "out/config.json" in packed.namelist()
    session.close()
    assert {path.name for path in work_folder.iterdir()} == {"digits", "digits-0-4", "digits-5-9", "out"}


def test_cuts_are_offered_with_their_costs_also_where_nothing_can_be_foreseen(work_folder):
    (work_folder / "few").mkdir()
    for number in range(12):
        PIL.Image.new("L", (8, 8), 20 * number).save(work_folder / "few" / f"{number}.png")
    few = Form(["digits-0-4", "digits-5-9"], ["few"], method="average", calibrate="none")
    session = started(work_folder, Here)
    session.diagnose(few)
    assert "100 of each data set" in session.look.unknown
    assert [way.cut for way in session.ways] == [None, "layer2", "layer1", "maxpool"]
    flops = [way.flops for way in session.ways]
    assert flops == sorted(flops)
    assert flops[0] == pytest.approx(1, abs=0.01)
    session.merge(few, 1, "out")
    assert load_merged(work_folder / "out").config.cut == "layer2"
    merged = load_merged(work_folder / "out")
    alone = load_source(str(work_folder / "digits-0-4"))
    size = alone.input_size
    assert count_flops(merged, size) / cost_of(alone.model, size).flops == pytest.approx(flops[1], abs=1e-3)
    session.close()


@pytest.mark.slow
def test_a_diagnosis_tells_what_the_trials_keep_and_merges_measure_on_labels(work_folder):
    form = Form(["digits-0-4", "digits-5-9"], ["digits"], labelled=["digits"])
    session = started(work_folder, Here)
    session.diagnose(form)
    look = session.look
    assert look.unknown is None
    assert look.picture.read_bytes()[:4] == b"\x89PNG"
    assert {way.kept is None for way in look.ways if way.cut != "maxpool"} == {False}
    assert look.control[0] in look.text
    assert "full merge" in look.text
    session.merge(form, len(look.ways) - 2, "out")
    assert "ensemble" in session.outcome.table
    assert session.outcome.picture == work_folder / "out" / "results.png"
    session.close()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["digits-0-4"]}, "two models"),
        ({"data": []}, "choose images"),
        ({"models": ["digits-0-4", "../digits-5-9"]}, "outside"),
        ({"data": ["/etc"]}, "outside"),
        ({"labelled": ["/etc"]}, "outside"),
        ({"method": "none such"}, "method"),
        ({"tasks": ["same", "same"]}, "same"),
    ],
)
def test_wrong_forms_are_refused_before_anything_runs(work_folder, form, changes, said):
    session = started(work_folder, Here)
    wrong = Form(**{**vars(form), **changes})
    try:
        session.merge(wrong, 0, "out")
        message = session.job.fault  # found by the work itself
    except OptionError as error:
        message = str(error)
    assert said in message
    assert session.outcome is None
    assert not (work_folder / "out").exists()
    session.close()


def test_an_existing_folder_and_ways_of_other_models_are_refused(work_folder, form):
    session = started(work_folder, Here)
    with pytest.raises(OptionError, match="exists already"):
        session.merge(form, 0, "digits")
    with pytest.raises(OptionError, match="not the models that were diagnosed"):
        session.merge(form, 1, "out")
    for ask in (lambda: session.try_image(None), session.zipped, lambda: session.push("user/x", "", True)):
        with pytest.raises(OptionError, match="there is no merge yet"):
            ask()
    session.close()


def test_one_thing_runs_at_a_time(work_folder, form):
    session = started(work_folder, Endless)
    session.diagnose(form)
    for again in (lambda: session.diagnose(form), lambda: session.merge(form, 0, "out")):
        with pytest.raises(OptionError, match="one thing at a time: the diagnosis runs"):
            again()
    assert session.cancel()
    assert not session.cancel()
    session.merge(form, 0, "out")
    session.close()
    assert session.job.cancelled


@pytest.mark.parametrize("run", [tasks.merge_for_ever, tasks.merge_and_linger])
def test_a_cancelled_merge_leaves_nothing(work_folder, form, monkeypatch, run):
    monkeypatch.setattr(sessions, "merge", run)
    monkeypatch.setattr(jobs, "GRACE", 0.5)  # it has to be killed
    before = {path.name for path in work_folder.iterdir()}
    session = Session(Places(work_folder))
    session.merge(form, 0, "new/deep/out")
    assert appeared(session.scratch / "begun")
    assert list((work_folder / "new" / "deep").iterdir())
    assert session.cancel()
    assert session.outcome is None
    session.close()
    assert {path.name for path in work_folder.iterdir()} == before


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_uploads_use_the_token_and_never_tell_it(hub, work_folder, digits, monkeypatch):
    folder = saving.save(hf_zipit.merge(digits, method="average", calibrate="none"), work_folder / "out")
    session = started(work_folder, Here)
    session.outcome = work.Outcome(folder, "")
    token = OWNER
    session.push("user/merged", token, True)
    assert session.uploaded.startswith(f"{hub.endpoint}/user/merged/commit/")
    assert hub.repos["user/merged"].private
    session.push("user/merged", TOKEN, True)
    assert "merged" in session.job.fault
    with pytest.raises(OptionError, match="characters that no token has") as error:
        session.push("user/merged", "tok\u00e9n-of-mine", True)
    shown = f"{session.job.fault} {error.value} {session.__dict__} {session.job.__dict__}"
    assert not [secret for secret in (token, TOKEN, "of-mine") if secret in shown]
    session.close()


def test_even_an_error_that_quotes_the_token_does_not_show_it(monkeypatch, capfd):
    def broken(folder, repo, **options):
        raise RuntimeError(f"the server did not like {TOKEN}")

    sent = []
    monkeypatch.setenv("HF_TOKEN", "before")
    monkeypatch.setenv("HF_DEBUG", "1")
    monkeypatch.setattr("hf_zipit.saving.push.push", broken)
    for name in ("end_in_order", "quieten", "without_bars"):
        monkeypatch.setattr(jobs, name, lambda: None)
    monkeypatch.setattr(jobs, "signal", types.SimpleNamespace(signal=lambda *_: None, SIGINT=2, SIG_IGN=1))
    monkeypatch.setattr(jobs.logging.getLogger("hf_zipit"), "handlers", [])
    jobs._work(types.SimpleNamespace(send=sent.append), work.upload, (Path("out"), "user/x", TOKEN, True))
    ((kind, message),) = sent
    assert kind == "fault"
    assert "did not like ***" in message
    printed = "".join(capfd.readouterr())
    assert "did not like ***" in printed
    assert TOKEN not in printed


def test_what_cannot_be_written_is_said_before_the_work(work_folder, form):
    with pytest.raises(OptionError, match="there is no folder"):
        Session(Places(work_folder / "nothing"))
    session = started(work_folder, Here)
    (work_folder / "file").touch()
    with pytest.raises((OptionError, OutputError)):
        session.merge(form, 0, "file/out")
    session.close()


def test_a_merge_with_bad_images_among_its_samples_is_none_the_worse(work_folder, digits, tmp_path):
    order = Order(Recipe(sources=[str(one) for one in digits], data=[str(work_folder / "photos")]), NOTHING)
    (work_folder / "photos").mkdir()
    PIL.Image.new("L", (8, 8)).save(work_folder / "photos" / "good.png")
    (work_folder / "photos" / "bad.png").write_bytes(b"no image")
    found = list(work._samples(order.recipe, NOTHING, tmp_path))
    assert len(found) == 1

"""The page and the Space without a browser: what its events give back, the command, and what a Space needs."""

import gc
import importlib.util
import runpy
from pathlib import Path

import PIL.Image
import pytest
import yaml

import hf_zipit
from hf_zipit.app.places import Places
from hf_zipit.app.session import Session
from hf_zipit.app.work import Look, Outcome, Way
from hf_zipit.recipe import Recipe
from hf_zipit.saving import save as saving
from tests.app.test_session import TOKEN, Endless

# gradio leaves event loops and sockets open
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
SPACE = Path(__file__).parents[2] / "examples" / "space"


@pytest.fixture(autouse=True)
def collect_what_gradio_leaves():
    """In these tests, so that no other test meets it."""
    yield
    gc.collect()


@pytest.fixture
def events(folder):
    """The events of a page whose work never ends, and its session."""
    import gradio as gr

    from hf_zipit.app.page import _Events
    from hf_zipit.app.panels import build

    session = Session(Places(folder), start=Endless)
    with gr.Blocks(analytics_enabled=False):
        yield _Events(session, build(session.places)), session
    session.close()


def entered(folder):
    """A form with two models and images that exist."""
    for name in ("a", "b", "photos"):
        (folder / name).mkdir()
    return [["a", "b"], ["photos"], "", "auto", "auto", None, []]


def test_wrong_input_is_one_sentence_on_the_page(events):
    found, session = events
    (update,) = found.diagnose(["../b", "a"], [], "", "auto", "auto", None, [])
    assert "outside" in update[found.panels.status]
    assert "bad" in update[found.panels.status]
    (update,) = found.merge(["a", "b"], ["photos"], "", "auto", "auto", None, [], None, None)
    assert "there is no model at" in update[found.panels.status]
    assert session.job is None
    assert "no merge yet" in found.answer(PIL.Image.new("L", (8, 8)))
    assert "no merge yet" in found.zip()[found.panels.status]


def test_a_second_click_is_refused_and_cancel_ends_the_first(events, folder, monkeypatch):
    found, _ = events
    form = entered(folder)
    monkeypatch.setattr(Endless, "wait", lambda self, seconds: None, raising=False)
    updates = found.merge(*form, 0, "out")
    first = next(updates)
    assert "Merge" in first[found.panels.status]
    (second,) = found.diagnose(*form)
    assert "one thing at a time: the merge runs" in second[found.panels.status]
    reloaded = found.load()  # another page follows the same work
    assert next(reloaded)[found.panels.models]["value"] == ["a", "b"]
    assert "Merge" in next(reloaded)[found.panels.status]
    found.cancel()
    *_, last = updates
    assert "Merge cancelled; nothing of it is left." in last[found.panels.status]


def test_a_token_is_taken_off_the_page_and_no_update_holds_it(events):
    found, _ = events
    updates = list(found.push("user/x", TOKEN, True))
    assert updates[0][found.panels.token]["value"] == ""
    assert "no merge yet" in updates[1][found.panels.status]
    assert TOKEN not in str(updates)
    assert found.panels.token.type == "password"


def test_a_page_that_is_loaded_again_shows_what_there_is(events, folder):
    found, session = events
    way = Way("share all layers", 1.0, kept=0.9)
    session.look = Look(Recipe(), (way, Way("share less", 1.5)), relation="one base", text="x", control=("a", 0.8))
    session.outcome = Outcome(folder / "out", "Chosen: x", summary="It should keep 90 %.")
    *_, last = found.load()
    see = found.panels
    assert "One base." in last[see.expectation]
    assert "90.0 %" in last[see.way_line]
    assert "It should keep 90 %." in last[see.result]
    assert last[see.made]["visible"]
    assert "1.50" in found.way(1)
    assert "not tried" in found.way(5)


def test_no_event_can_be_called_as_an_api(folder):
    from hf_zipit.app.page import page

    session = Session(Places(folder), start=Endless)
    blocks = page(session)
    session.close()
    assert len(blocks.fns) == 9
    assert {fn.api_visibility for fn in blocks.fns.values()} == {"private"}


def test_the_space_shows_a_merge_as_the_package_does(digits, tmp_path, monkeypatch):
    folder = saving.save(hf_zipit.merge(digits, method="average", calibrate="none"), tmp_path / "merged")
    monkeypatch.setenv("MODEL", str(folder))
    demo = runpy.run_path(str(SPACE / "app.py"))["demo"]
    (event,) = demo.fns.values()
    shown = event.fn(PIL.Image.new("L", (8, 8), 90))
    assert shown.count("<section>") == 2
    assert "digits-5-9" in shown
    assert event.fn(None) == ""


def test_the_space_states_what_a_space_needs():
    import gradio

    _, header, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    known = yaml.safe_load(header)
    assert known["sdk"] == "gradio"
    assert known["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert (SPACE / known["app_file"]).is_file()
    assert (SPACE / "requirements.txt").read_text().split() == ["hf-zipit[app]"]
    assert len(known["short_description"]) <= 60
    assert "MODEL" in text


def test_the_command_says_what_it_lacks(run, folder, monkeypatch):
    code, _, err = run("app", "--folder", folder / "nothing")
    assert code == 2
    assert "there is no folder" in err
    real = importlib.util.find_spec
    monkeypatch.setattr("hf_zipit.app.command.find_spec", lambda name: None if name == "gradio" else real(name))
    code, _, err = run("app", "--folder", folder)
    assert code == 2
    assert "the app needs gradio: pip install 'hf-zipit[app]'" in err
    assert list(folder.iterdir()) == []
    code, out, _ = run("app", "--help")
    assert code == 0
    assert "--folder" in out

"""The app in a real browser: the whole way, wrong input, a cancelled merge, two tabs, and a telephone."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import torch

from hf_zipit.saving.load import load_merged

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # of playwright's event loop
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
TOKEN = "hf_abcdefghijklmnopqrstuv"
LONG = 600_000  # milliseconds, for work on a busy machine
SHORT = 90_000


def wait_for(text, log, server):
    """Wait until a server has printed a text."""
    end = time.monotonic() + LONG / 1000
    while text not in log.read_text() and server.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    assert text in log.read_text(), log.read_text()


@pytest.fixture
def app(digits, digits_data, tmp_path):
    """A running app on the models and images of the demo: its address, working folder and log."""
    folder = tmp_path / "work"
    for place in (*digits, digits_data):
        shutil.copytree(place, folder / place.name)
    (tmp_path / "secret.png").write_bytes(b"nothing for others")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    command = [sys.executable, "-m", "hf_zipit", "app", "--folder", str(folder), "--port", str(port)]
    with log.open("w") as written:
        server = subprocess.Popen(command, stdout=written, stderr=written, env={**os.environ, "HF_TOKEN": TOKEN})
    wait_for("serves", log, server)
    yield f"http://127.0.0.1:{port}/", folder, log
    server.send_signal(signal.SIGTERM)
    server.wait(60)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]  # no temporary files are left
    assert TOKEN not in log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def browser():
    """Headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


def opened(browser, address, asked=None, **options):
    """The page in a new tab; `asked` collects the hosts that it talks to."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(SHORT)
    if asked is not None:
        page.on("request", lambda request: asked.add(request.url.split("/")[2]))
    page.goto(address)
    page.wait_for_selector("#zipit-diagnose")
    return page


def choose(page, where, *values):
    """Enter values in a field that takes several, in place of those in it."""
    if page.locator(f"{where} .remove-all").count():
        page.click(f"{where} .remove-all")
    field = page.locator(f"{where} input").first
    for value in values:
        field.click()
        field.fill(value)
        field.press("Enter")
    page.keyboard.press("Escape")


def status(page, kind, timeout=SHORT):
    """The text of the status line, once it is of a kind."""
    page.wait_for_selector(f"#zipit-status .{kind}", timeout=timeout)
    return page.inner_text("#zipit-status")


def picture(page, name):
    """Keep a picture of the page, if somebody wants to look at it."""
    if os.environ.get("HF_ZIPIT_SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["HF_ZIPIT_SCREENSHOTS"], f"{name}.png"), full_page=True)


def fill(page):
    """Models, images and options of the demo, on few images."""
    choose(page, "#zipit-models", "digits-0-4", "digits-5-9")
    choose(page, "#zipit-data", "digits")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("Images per data set").fill("200")
    choose(page, "#zipit-labelled", "digits")


def test_the_whole_way_from_two_models_to_a_zip_file(app, browser, tmp_path):
    address, folder, _ = app
    asked = set()
    page = opened(browser, address, asked, viewport={"width": 1280, "height": 900})
    fill(page)
    page.click("#zipit-diagnose")
    assert "Diagnosis" in status(page, "run")
    assert page.locator("#zipit-merge").is_disabled()
    assert "Diagnosis done." in status(page, "good", LONG)
    assert "initialisations of their own" in page.inner_text("#zipit-expectation")
    assert page.locator("#zipit-expectation img").evaluate("image => image.naturalWidth") > 500
    page.locator("#zipit-way input[type=range]").fill("2")
    page.wait_for_function("document.querySelector('#zipit-way-line').innerText.includes('layer2')")
    picture(page, "diagnosed")
    assert "1.29" in page.inner_text("#zipit-way-line")
    assert "should keep" in page.inner_text("#zipit-way-line")
    page.click("#zipit-merge")
    assert "Merge" in status(page, "run")
    assert "Merge done." in status(page, "good", LONG)
    shown = page.inner_text("#zipit-result")
    assert "The merge should keep" in shown
    assert "ensemble" in shown
    merged = load_merged(folder / "merged")
    assert merged.config.cut == "layer2"
    page.locator("#zipit-samples button").nth(1).click()
    page.wait_for_selector("#zipit-answers section")
    assert page.locator("#zipit-answers section").count() == 2
    assert "Of all classes together" in page.inner_text("#zipit-answers")
    picture(page, "merged")
    page.click("#zipit-zip")
    page.wait_for_selector("#zipit-file a")
    with page.expect_download() as download:
        page.locator("#zipit-file a").first.click()
    download.value.save_as(tmp_path / "merged.zip")
    with zipfile.ZipFile(tmp_path / "merged.zip") as packed:
        packed.extractall(tmp_path / "unpacked")
    again = load_merged(tmp_path / "unpacked" / "merged")
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), again.parameters(), strict=True))
    assert asked == {address.split("/")[2]}  # nothing is asked of other hosts
    _is_read_on_a_telephone(browser, address)


def _is_read_on_a_telephone(browser, address):
    """A page that is opened later shows what there is, and nothing of it is wider than the screen."""
    phone = opened(browser, address, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    phone.wait_for_selector("#zipit-result details")
    phone.wait_for_selector("#zipit-way input[type=range]")
    phone.locator("#zipit-samples").scroll_into_view_if_needed()
    phone.wait_for_function("document.querySelector('#zipit-samples img')?.naturalWidth > 0")
    picture(phone, "telephone")
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    assert "digits-5-9" in phone.inner_text("#zipit-models")


def test_wrong_input_a_cancelled_merge_and_a_second_tab(app, browser):
    address, folder, log = app
    before = sorted(path.name for path in folder.iterdir() if path.name[0] != ".")
    page = opened(browser, address)
    choose(page, "#zipit-models", "digits-0-4", "../secret")
    choose(page, "#zipit-data", "digits")
    page.click("#zipit-diagnose")
    assert "outside" in status(page, "bad")
    page.reload()
    page.wait_for_selector("#zipit-diagnose:enabled")
    choose(page, "#zipit-models", "digits-0-4", "user/none-such")
    choose(page, "#zipit-data", "digits")
    page.click("#zipit-diagnose")
    said = status(page, "bad")
    assert "user/none-such" in said
    assert "Traceback" not in said
    second = opened(browser, address)
    for tab in (page, second):
        choose(tab, "#zipit-models", "digits-0-4", "digits-5-9")
        choose(tab, "#zipit-data", "digits")
    page.click("#zipit-merge")
    status(page, "run")
    second.click("#zipit-merge")
    said = "document.querySelector('#zipit-status').innerText.includes('one thing at a time: the merge runs')"
    second.wait_for_function(said)
    picture(page, "running")
    page.click("#zipit-cancel")
    assert "nothing of it is left" in status(page, "plain")
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == before
    for path in ("secret.png", "work/digits-0-4/config.json"):
        with pytest.raises(urllib.error.HTTPError, match="40"):
            urllib.request.urlopen(f"{address}gradio_api/file={folder.parent / path}")
    assert TOKEN not in page.content() + second.content() + Path(log).read_text()


def test_the_space_in_a_browser(browser, digits, tmp_path):
    import hf_zipit

    folder = hf_zipit.save(hf_zipit.merge(digits, method="average", calibrate="none"), tmp_path / "merged")
    space = Path(__file__).parents[2] / "examples" / "space" / "app.py"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MODEL": str(folder), "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, space], stdout=log, stderr=log, env={**os.environ, **own})
    try:
        wait_for("Running on", tmp_path / "log", server)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("input[type=file]", state="attached", timeout=SHORT)
        page.set_input_files("input[type=file]", _digit(tmp_path))
        page.wait_for_selector("#zipit-answers section", timeout=SHORT)
        assert page.locator("#zipit-answers section").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        picture(page, "space")
    finally:
        server.terminate()
        server.wait(60)


def _digit(folder):
    import PIL.Image

    file = folder / "digit.png"
    PIL.Image.linear_gradient("L").resize((8, 8)).save(file)
    return str(file)

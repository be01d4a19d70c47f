"""The documentation site: it builds strictly, says what the code says, fetches nothing, and its code runs."""

import ast
import html
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer.main
from mkdocs.exceptions import PluginError
from pymdownx import slugs

from hf_zipit.cli import COMMANDS, app
from hf_zipit.matching.methods import METHODS
from tests.helpers.detectors import PICTURES
from tests.helpers.reader import furnish
from tests.helpers.snippets import BLOCK, commands_in, run_page

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
BEFORE = {  # page -> what its reader has done and has at hand
    "export": ("merge user/pets user/birds --data user/animals -o merged", {}),
    "app": ("merge user/pets user/birds --data user/animals -o user/merged", {}),
    "detection": (None, {"image": PICTURES[0]}),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    out = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_public_name_and_command_has_an_entry(site):
    public = re.findall(r" as (\w+)$", (ROOT / "hf_zipit" / "__init__.pyi").read_text(), re.MULTILINE)
    api = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert [name for name in public if f'id="hf_zipit.{name}"' not in api] == []
    assert "{options}" not in api
    assert "doctest" not in text_of(site / "reference" / "api" / "index.html")
    commands = text_of(site / "reference" / "commands" / "index.html")
    assert [name for name in COMMANDS if f"hf-zipit {name}" not in commands] == []


def test_the_parts_are_those_that_readers_look_for():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    parts = re.findall(r"^- ([\w ]+):", nav, re.MULTILINE)
    assert parts == ["Start", "Guides", "How it works", "Reference", "Models", "Results", "Questions"]


def test_a_link_to_a_file_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks = importlib.import_module("hooks")
    page = SimpleNamespace(title="A page", file=SimpleNamespace(src_uri="guides/a.md"))
    config = SimpleNamespace(repo_url="https://host/repo")
    files = SimpleNamespace(get_file_from_path=lambda path: path in ("data.md", "benchmarks/README.md"))
    text = "[a](../data.md#labels) [b](../../benchmarks/README.md) [c](../../examples/cifar.py) `[d](e)`"
    expected = "[a](../data.md#labels) [b](../benchmarks/README.md) [c](https://host/repo/blob/main/examples/cifar.py)"
    assert hooks.on_page_markdown(text, page, config, files) == f"{expected} `[d](e)`"
    with pytest.raises(PluginError, match=r"there is no examples/cifra\.py"):
        hooks.on_page_markdown("[c](../../examples/cifra.py)", page, config, files)


def test_links_of_the_readme_lead_somewhere():
    anchor_of = slugs.slugify(case="lower")
    for path, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        target = ROOT / (path or "README.md")
        assert target.is_file(), path
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [anchor_of(heading, "-") for heading in headings], (path, anchor)


def test_an_equation_with_an_unknown_command_is_an_error(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    hooks = importlib.import_module("hooks")
    assert "<mi>&#x003B1;</mi>" in hooks.MATH.sub(hooks.equation, "```math\n\\alpha\n```")
    with pytest.raises(PluginError, match=r"\\unknown has no MathML"):
        hooks.MATH.sub(hooks.equation, "```math\n\\unknown x\n```")


def test_equations_are_written_as_mathml_and_pictures_are_there(site):
    for name in ("spaces", "zip", "select", "refit", "joint"):
        page = (site / "how" / name / "index.html").read_text(encoding="utf-8")
        assert "<math " in page, name
        assert f"pictures/{name}.svg" in page
        assert (site / "pictures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<svg ")


def test_pages_from_outside_the_folder_are_part_of_it(site):
    assert "The spec grammar" in text_of(site / "model_specs" / "index.html")
    assert "mobilenetv4_conv_small" in text_of(site / "benchmarks" / "traced_models" / "index.html")
    assert "wide_resnet50_2" in text_of(site / "models" / "families" / "index.html")
    assert "parquet" in text_of(site / "reference" / "recipes" / "index.html")
    assert (site / "benchmarks" / "real_pair.png").is_file()
    automatic = (site / "automatic" / "index.html").read_text(encoding="utf-8")
    assert 'href="../benchmarks/"' in automatic  # written as ../benchmarks/README.md


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]+)", page.read_text(encoding="utf-8"))
        loaded += re.findall(r"<link\b[^>]*rel=\"(?:stylesheet|preconnect)\"[^>]*>", page.read_text(encoding="utf-8"))
        assert [address for address in loaded if "//" in address] == [], page


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_on_pages_is_python_and_known_flags(page):
    known = typer.main.get_command(app).commands
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(block)
            continue
        for words in commands_in(block):
            if "hf-zipit" in words[0] or "hf_zipit" in words:
                at = words.index("hf_zipit") if "hf_zipit" in words else 0
                parameters = known[words[at + 1]].params
                flags = {option for known_one in parameters for option in (*known_one.opts, *known_one.secondary_opts)}
                given = {word for word in words[at + 1 :] if re.match("-[-a-z]", word)}
                assert given <= flags, (page.name, given - flags)


@pytest.fixture
def reader(digits_data, hub, tmp_path, monkeypatch):
    """The folder of a reader who has all models and images that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])
    furnish(tmp_path, ROOT / "examples" / "digits", digits_data)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_on_pages_runs(page, reader, run):
    before = dict(METHODS)
    command, names = BEFORE.get(page.stem, (None, {}))
    if command:
        assert run(*command.split())[0] == 0
    try:
        run_page(page, run, names)
    finally:  # one page adds a method
        METHODS.clear()
        METHODS.update(before)

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

import datasets
import pytest
import timm
import typer.main
from mkdocs.exceptions import PluginError
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from hf_zipit.cli import COMMANDS, app
from hf_zipit.matching.methods import METHODS
from hf_zipit.transform.permute import randomise
from tests.helpers.snippets import BLOCK, commands_in, run_page
from tests.helpers.wholes import NARROW, unet

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name in ("start", "guides", "how"))
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]
COPIES = {"pets": "digits-0-4", "birds": "digits-5-9", "cars": "digits-5-9", "cats": "digits-0-4", "base": "digits-0-4"}
SHARE = {"pets": 1, "birds": 1, "cars": 0.97, "cats": 1.02, "base": 1.01}  # factor on the first layer's weights


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
def test_code_on_new_pages_is_python_and_known_flags(page):
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


def source_folder(folder, model, share):
    """A copy of a model whose first layer is a little larger or smaller."""
    folder.mkdir(parents=True)
    weights = load_file(model / "model.safetensors")
    first = next(name for name in weights if name.endswith("weight"))
    save_file({**weights, first: weights[first] * share}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())


@pytest.fixture
def reader(digits, digits_data, hub, tmp_path, monkeypatch):
    """The folder of a reader who has all models and images that the pages name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, copied in COPIES.items():
        source_folder(tmp_path / "user" / name, ROOT / "examples" / "digits" / copied, SHARE[name])
    for name in ("animals", "images", "pets-data", "birds-data"):
        (tmp_path / "user" / name).mkdir()
        for split in ("train", "test"):
            rows = datasets.Dataset.from_parquet(
                str(digits_data / f"{split}.parquet"), cache_dir=str(tmp_path / "rows")
            )
            rows.select(range(120)).to_parquet(str(tmp_path / "user" / name / f"{split}.parquet"))
    changes = {"num_classes": 5, **NARROW}
    model = randomise(timm.create_model("resnet18", pretrained_cfg={"input_size": (3, 32, 32)}, **changes).eval(), 1)
    save_for_hf(model, tmp_path / "user" / "classifier", model_args=NARROW, safe_serialization=True)
    randomise(unet().eval(), 2).save_pretrained(tmp_path / "user" / "segmenter")
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_code_on_new_pages_runs(page, reader, run):
    before = dict(METHODS)
    try:
        run_page(page, run)
    finally:  # one page adds a method
        METHODS.clear()
        METHODS.update(before)

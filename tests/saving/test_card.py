"""The card: metadata the Hub accepts, licenses, results, and snippets that run."""

import re
import shutil

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.saving import save as saving
from hf_zipit.saving.card import card
from hf_zipit.saving.card_results import BEGIN, verdict_text, with_results
from hf_zipit.saving.license import common_license, license_of
from hf_zipit.saving.provenance import Provenance
from hf_zipit.saving.sidecars import sidecar_files

ROW = {
    "model": "merged",
    "tasks": {"a": 0.5, "b": 0.75},
    "average": 0.625,
    "joint": 0.4,
    "flops": 10**9,
    "parameters": 5,
}
RESULTS = {"data": ["user/x", "user/y"], "rows": [ROW, {**ROW, "model": "parent:a", "tasks": {"a": 0.9}}], "plot": None}


def config(*licenses, **more):
    sources = [{"id": f"user/{n}", "revision": "f" * 40, **value} for n, value in zip("ab", licenses, strict=True)]
    heads = [{"task": n, "id2label": {0: f"{n}0", 1: f"{n}1"}, "source": i} for i, n in enumerate("ab")]
    about = {"sources": sources, "recipe": {"method": "zip"}, "data": [{"name": "user/x", "num_images": 8}]}
    return ZipItConfig(heads=heads, zipit=about, **more)


def test_the_metadata_says_what_was_merged():
    data = ModelCard(card(config({}, {}), "user/merged", license={"license": "mit"})).data.to_dict()
    assert data["base_model"] == ["user/a", "user/b"]
    assert data["base_model_relation"] == "merge"
    assert data["license"] == "mit"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert "zipit" in data["tags"]
    assert "model-index" not in data


def test_licenses_come_from_the_parents_and_conflicts_are_refused(tmp_path):
    mit, other = {"id": "a", "license": "mit"}, {"id": "b", "license": "other", "license_name": "mine"}
    assert common_license([mit, mit]) == {"license": "mit"}
    assert common_license([mit, {"folder": "b"}]) == {}
    assert common_license([mit, other], "cc-by-4.0") == {"license": "cc-by-4.0"}
    with pytest.raises(SourceError, match=r"different licenses \(a: mit, b: mine\): choose .*--license"):
        common_license([mit, other])
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\ntags: [x]\n---\n# hello")
    assert license_of(tmp_path) == {"license": "other", "license_name": "mine"}
    for broken in ("no front matter", "---\na: [\n---\n", "---\n- a\n---\n"):
        (tmp_path / "README.md").write_text(broken)
        assert license_of(tmp_path) == {}
    assert license_of(None) == {}


def test_results_go_into_table_and_model_index_and_the_rest_is_kept():
    first = card(config({}, {}), "user/merged") + "\nMy own words.\n"
    again = with_results(with_results(first, config({}, {}), RESULTS), config({}, {}), RESULTS)
    read = ModelCard(again)
    assert model_index_to_eval_results(read.data.to_dict()["model-index"])[0] == read.data.model_name
    found = {r.metric_name: (r.dataset_type, r.metric_value) for r in read.data.eval_results}
    assert found == {
        "accuracy on a, among its own classes": ("user/x", 0.5),
        "accuracy on b, among its own classes": ("user/y", 0.75),
        "joint accuracy, among the classes of all tasks": ("user/x and user/y", 0.4),
    }
    assert "| parent:a | 90.0 | - |" in again
    assert "My own words." in again
    assert again.count("## Results") == again.count(BEGIN) == 1
    assert read.data.base_model == ["user/a", "user/b"]
    assert "Not evaluated yet" in first
    assert "Not evaluated yet" not in again


@pytest.fixture(scope="module")
def home(digits, digits_data, tmp_path_factory):
    """Two licensed parents, and their merge beside them."""
    home = tmp_path_factory.mktemp("home")
    for folder in digits:
        shutil.copytree(folder, home / folder.name)
        (home / folder.name / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    merged = hf_zipit.merge([home / d.name for d in digits], digits_data, num_images=32)
    saving.save(merged, home / "merged")
    return home


def test_the_card_of_a_real_merge(home):
    text = (home / "merged" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.base_model is None  # no model on the Hub
    recipe = re.search(r"```yaml\n(.*?)```", text, re.S).group(1)
    full = yaml.safe_load((home / "merged" / "zipit_config.yml").read_text())
    public = {key: value for key, value in full.items() if key != "data"}
    public["sources"] = [{k: v for k, v in source.items() if k != "path"} for source in full["sources"]]
    assert yaml.safe_load(recipe) == public
    assert full["data"]
    command = "`hf-zipit merge zipit_config.yml digits-0-4 digits-5-9 --data digits -o again` reproduces these weights"
    local = "`digits-0-4`, `digits-5-9`, `digits`"
    assert f"{command}; replace {local}, which are not on the Hub, with your own paths:" in text
    assert "../" not in text
    assert str(home) not in text


def test_a_card_shows_what_is_shared_and_how_good_it_is_beside_the_control(digits, digits_data, tmp_path):
    merged = hf_zipit.merge(digits, digits_data, num_images=200, cut="layer2", calibrate="none")
    text = (saving.save(merged, tmp_path / "merged") / "README.md").read_text()
    assert "# One model for digits-0-4 and digits-5-9\n" in text
    assert "](structure.png)" in text
    with Image.open(tmp_path / "merged" / "structure.png") as picture:
        assert picture.format == "PNG"
        colors = {color for _, color in picture.convert("RGB").getcolors(10**6)}
    assert {(191, 219, 254), (254, 215, 170), (255, 255, 255)} <= colors  # shared, own, background
    verdict = Provenance.of(merged.config).verdict
    row = next(line for line in text.splitlines() if re.match(r"\| digits-0-4 \| \d+ \|", line))
    mine = verdict["tasks"]["digits-0-4"]
    shares = [f"{100 * mine[key]:.1f}" for key in ("agreement", "control", "chance")]
    assert row == f"| digits-0-4 | {mine['images']} | {' | '.join(shares)} |"
    assert f"control: trunk of {verdict['control']} alone" in text
    assert all(f"- {sentence}" in text for sentence in verdict["advice"])
    assert "\n\n\n" not in text


def test_a_verdict_is_empty_without_held_out_images_and_needs_no_control():
    one = {"images": 100, "agreement": 0.9, "control": None, "chance": 0.5, "kept": 0.95, "expected": None}
    verdict = {"tasks": {"a": one}, "control": None, "control_kept": None, "kept": 0.95, "advice": ["give more"]}
    text = verdict_text(verdict)
    assert "keep 95.0 % of the accuracy of its parent." in text
    assert "| a | 100 | 90.0 | 50.0 |" in text
    assert "ontrol" not in text
    assert text.endswith("\n- give more")
    assert verdict_text(None) == ""


@pytest.mark.parametrize(("tasks", "title"), [("ab", "a and b"), ("abcd", "a, b, c and d"), ("abcde", "5 tasks")])
def test_the_title_names_a_few_tasks(tasks, title):
    made = config({}, {})
    made.heads = [{"task": name, "id2label": {0: name}, "source": 0} for name in tasks]
    assert f"\n# One model for {title}\n" in card(made)


def test_its_snippets_run(home, monkeypatch):
    monkeypatch.chdir(home)
    Image.new("L", (40, 50), 90).save(home / "image.jpg")
    snippets = re.findall(r"```python\n(.*?)```", (home / "merged" / "README.md").read_text(), re.S)
    snippets = [snippet.replace("path/or/id", "merged") for snippet in snippets]
    names = {}
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 3
    assert names["out"].logits.shape == (1, 10)
    assert {found["label"] for found in names["only"](Image.open("image.jpg").convert("RGB"))} == set("01234")


def test_another_license_can_be_chosen(home, tmp_path):
    (home / "digits-5-9" / "README.md").write_text("---\nlicense: mit\n---\n")
    merged = hf_zipit.merge([home / "digits-0-4", home / "digits-5-9"], method="average", calibrate="none")
    with pytest.raises(SourceError, match=r"digits-0-4: apache-2\.0, digits-5-9: mit"):
        saving.save(merged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder = saving.save(merged, tmp_path / "out", license="mit")
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_the_card_says_what_reproduces_the_weights_and_what_it_cannot_know():
    about = config({}, {}).zipit
    for part, again in [
        ({"ref": "user/x@abc:test"}, "`hf-zipit merge zipit_config.yml -o again` reproduces these weights:"),
        (
            {"folder": "my x"},
            "`hf-zipit merge zipit_config.yml --data 'my x' -o again` reproduces these weights; replace `my x`, which",
        ),
        ({}, "Some of the models or images were passed in memory, so no command reproduces these weights."),
    ]:
        made = config({}, {})
        made.zipit = {**about, "data": [{"name": "x", "num_images": 8, **part}]}
        assert again in sidecar_files(made, None)["README.md"]

"""Methods from outside the package: registered by a decorator, or offered by an installed package."""

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForImageClassification

import hf_zipit
from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.run import Comparison
from hf_zipit.errors import OptionError
from hf_zipit.matching import permute_match, registry
from hf_zipit.matching.cca import cca_match
from hf_zipit.matching.methods import METHODS
from hf_zipit.matching.options import Options
from hf_zipit.matching.registry import absent_methods, described, method_of, names, register_method, usable
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.saving.save import save
from hf_zipit.saving.sidecars import without_local_paths
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import Match, check_match
from tests.helpers.models import hf_vit, images, tiny

ROOT = Path(__file__).parents[2]
PLUGIN = """
import torch
import hf_zipit


@hf_zipit.register_method("backwards", "pair the first unit with the last", activations=True, within=True, sized=True)
def backwards(similarity, sizes, keep=None):
    count = keep or sizes[0]
    return hf_zipit.Match(torch.arange(sum(sizes)).flip(0) % count, tuple(sizes), count)
"""
RUN = """
import json, sys, time
used = time.process_time()
from hf_zipit import cli
used = time.process_time() - used
assert "my_methods" not in sys.modules and "torch" not in sys.modules
from hf_zipit.recipe import Recipe
schema = Recipe.model_json_schema()["properties"]["method"]
assert "backwards" in schema["enum"] and "backwards: from the package my-methods." in schema["description"]
assert "my_methods" not in sys.modules
cli.app(sys.argv[1:], standalone_mode=False)
print(json.dumps(used))
"""


@pytest.fixture(autouse=True)
def methods_as_before():
    """Forget the methods that a test registers."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def installed(folder, value="my_methods:backwards", name="my-methods", method="backwards", code=PLUGIN):
    """A folder as pip would fill it with a package that offers one method."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_zipit.methods]\n{method} = {value}\n")
    (folder / "my_methods.py").write_text(code)
    return folder


@pytest.fixture
def offered(tmp_path, monkeypatch):
    """A function that installs a package for this process only."""

    def install(**package):
        monkeypatch.syspath_prepend(str(installed(tmp_path / "packages", **package)))
        registry._offered.cache_clear()

    yield install
    monkeypatch.undo()
    sys.modules.pop("my_methods", None)
    registry._offered.cache_clear()


def runs(folder, *arguments):
    """Run a command in a new process that finds the packages in a folder."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUN, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_registered_method_is_in_options_help_and_schema():
    register = register_method("mine", "align units as I do.", activations=True, options=("compat",))
    assert register(permute_match) is permute_match
    assert Options(method="mine").needs_statistics
    assert "mine" in names()
    assert "- mine: align units as I do." in described().splitlines()
    schema = Recipe.model_json_schema()["properties"]["method"]
    assert schema["enum"][-1] == "mine"
    assert "- mine: align units as I do." in schema["description"]
    similarity = torch.eye(4)[[0, 1, 1, 0]] @ torch.eye(4)[[0, 1, 1, 0]].T
    assert method_of("mine").match(Options(method="mine"))(similarity, [2, 2]).labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("Mine", {"activations": True}, "'Mine' cannot name a method"),
        ("paper:x", {"activations": True}, "cannot name a method"),
        ("zip", {"activations": True}, "'zip' is a name of hf-zipit"),
        ("auto", {"activations": True}, "'auto' is a name of hf-zipit"),
        ("all", {"activations": True}, "'all' is a name of hf-zipit"),
        ("mine", {"activation": True}, "unknown attribute 'activation'; attributes: activations, weights"),
        ("mine", {"within": True}, "method 'mine': say what it compares"),
        ("mine", {"weights": True, "dense": True}, "method 'mine': dense matches are made from activations alone"),
    ],
)
def test_what_cannot_be_registered_is_refused(name, how, said):
    with pytest.raises(OptionError, match=said):
        register_method(name, "whatever", **how)
    assert "mine" not in METHODS


def test_a_misspelt_method_is_told_the_nearest():
    with pytest.raises(OptionError, match=r"unknown method 'zipp'; did you mean 'zip'\?"):
        Options(method="zipp")


def test_an_option_that_no_merge_has_is_refused():
    register_method("mine", "whatever", activations=True, options=("coolness",))(permute_match)
    with pytest.raises(OptionError, match="method 'mine' takes 'coolness', which is no option of a merge"):
        method_of("mine").match(Options(method="mine"))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.tensor([0, 1, 0, 1]), "Tensor, not a Match"),
        (Match(torch.tensor([0, 1, 0]), (2, 1), 2), r"a match of \[2, 1\] units, but the models have \[2, 2\]"),
        (Match(torch.tensor([0, 1, 0]), (2, 2), 2), "labels of shape"),
        (Match(torch.tensor([0.0, 1.0, 0.0, 1.0]), (2, 2), 2), "torch.float32, not"),
        (Match(torch.tensor([0, 1, 0, 2]), (2, 2), 2), "label 2, but its width is 2"),
        (Match(torch.tensor([0, 1, 0, -2]), (2, 2), 2), "label -2, but its width is 2"),
        (Match(torch.tensor([0, 0, 0, 0]), (2, 2), 2), "merged unit 1 has no members"),
        (Match(torch.tensor([0, 1, 0, 2]), (2, 2), 3), "a match of width 3, not 2"),
    ],
)
def test_a_wrong_match_is_refused_by_the_name_of_the_method(found, said):
    register_method("mine", "whatever", activations=True)(lambda similarity, sizes: found)
    with pytest.raises(OptionError, match=f"method 'mine' returned .*{said}"):
        method_of("mine").match(Options(method="mine"))(torch.eye(4), [2, 2])


@pytest.mark.parametrize(("order", "whole"), [([2, 3, 0, 1], True), ([1, 0, 3, 2], True), ([0, 2, 1, 3], False)])
def test_a_match_that_divides_groups_is_refused(order, whole):
    labels = torch.tensor([*order, -1, -1, -1, -1])
    register_method("mine", "whatever", fixed=True)(lambda sizes, groups: Match(labels, tuple(sizes), sizes[0]))
    assert method_of("mine").fixed_match([4, 4], 1).labels.tolist() == labels.tolist()
    if whole:
        assert method_of("mine").fixed_match([4, 4], 2).labels.tolist() == labels.tolist()
    else:
        with pytest.raises(OptionError, match="method 'mine' returned a match that divides some of 2 groups"):
            method_of("mine").fixed_match([4, 4], 2)


@pytest.mark.parametrize("alike", [True, False])
def test_a_fixed_method_that_orders_the_heads_of_keys_and_values_differently_is_refused(alike):
    calls = []

    @register_method("mine", "heads in another order", fixed=True)
    def reordered(sizes, groups):
        calls.append(groups)
        turn = groups > 1 and (alike or len(calls) % 2)
        units = torch.arange(sizes[0]).view(groups, -1)
        labels = [units.flatten(), (units.flip(0) if turn else units).flatten()]
        return Match(torch.cat(labels), tuple(sizes), sizes[0])

    merger = Merger([hf_vit(seed) for seed in (0, 1)], images(16), tasks=["a", "b"], cache=False)
    if alike:
        merger.merge(method="mine", calibrate="none")
    else:
        with pytest.raises(OptionError, match=r"method 'mine' orders the 4 groups of .* differently"):
            merger.merge(method="mine", calibrate="none")


HALVES = torch.full((2, 4), 0.25)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Match(torch.tensor([0, 1, 0, 1]), (2, 2), 2), "Match, not a DenseMatch"),
        (DenseMatch(HALVES, HALVES.T, HALVES, (4,)), r"a match of \[4\] units, but the models have \[2, 2\]"),
        (DenseMatch(HALVES, HALVES, HALVES, (2, 2)), r"an unmerge matrix of shape \(2, 4\), not \(4, 2\)"),
        (DenseMatch(HALVES[:1], HALVES.T, HALVES, (2, 2)), r"a merge matrix of shape \(1, 4\), not \(2, 4\)"),
        (DenseMatch(HALVES, HALVES.T / 0, HALVES, (2, 2)), "an unmerge matrix with values that are not finite"),
    ],
)
def test_a_wrong_dense_match_is_refused_by_the_name_of_the_method(found, said):
    register_method("mine", "whatever", activations=True, dense=True)(lambda similarity, sizes: found)
    with pytest.raises(OptionError, match=f"method 'mine' returned {said}"):
        method_of("mine").match(Options(method="mine"))(torch.eye(4), [2, 2])


def test_a_dense_method_from_outside_merges_as_ours():
    register_method("mine", "as cca", activations=True, covariance=True, dense=True)(cca_match)
    merger = Merger([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(32), tasks=["a", "b"], cache=False)
    found, ours = (merger.merge(method=name, calibrate="batchnorm").state_dict() for name in ("mine", "cca"))
    assert all(torch.equal(value, ours[name]) for name, value in found.items())


def test_a_right_match_passes():
    match = Match(torch.tensor([0, 1, 0, 2]), (2, 2), 3)
    assert check_match(match, [2, 2], 3) == ""
    assert check_match(Match(torch.tensor([0, 1, 0]), (2, 1), 2), [2, 1]) == ""


def test_a_method_without_a_similarity_and_a_later_function_of_the_same_name():
    merger = Merger([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(16), tasks=["a", "b"], cache=False)

    @register_method("mine", "unit i with unit i", fixed=True)
    def plainly(sizes, groups):
        return Match(torch.arange(sizes[0]).repeat(len(sizes)), tuple(sizes), sizes[0])

    first = merger.merge(method="mine", calibrate="none")
    average = merger.merge(method="average", calibrate="none")
    assert all(torch.equal(value, average.state_dict()[name]) for name, value in first.state_dict().items())

    @register_method("mine", "the first model", fixed=True)
    def alone(sizes, groups):
        labels = torch.full((sum(sizes),), -1)
        labels[: sizes[0]] = torch.arange(sizes[0])
        return Match(labels, tuple(sizes), sizes[0])

    second = merger.merge(method="mine", calibrate="none")  # not what the earlier function made
    control = merger.merge(method="first-parent", calibrate="none")
    assert all(torch.equal(value, control.state_dict()[name]) for name, value in second.state_dict().items())


def test_rows_of_another_function_are_made_anew(tmp_path):
    def compare(shift, **how):
        @register_method("mine", "pair units", **(how or {"activations": True}))
        def mine(similarity, sizes):
            return Match(
                torch.cat([torch.arange(sizes[0]), (torch.arange(sizes[1]) + shift) % sizes[0]]), (*sizes,), sizes[0]
            )

        merger = Merger([tiny("cifar_resnet20", seed) for seed in (0, 1)], images(16), tasks=["a", "b"], cache=False)
        made = []
        comparison = Comparison(merger, tmp_path, save=lambda recipe, _: made.append(recipe.method))
        comparison.run(Grid(["mine", "average"], calibrations=["none"]).recipes(merger))
        return made

    assert compare(1) == ["mine", "average"]
    assert compare(1) == []
    assert compare(2) == ["mine"]
    assert compare(2, weights=True) == ["mine"]


def test_a_merge_by_an_absent_method_can_be_loaded_and_saved_again(tmp_path):
    register_method("mine", "pair units", activations=True)(permute_match)
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    save(hf_zipit.merge(models, images(16), method="mine", width=1.5, cache=False), tmp_path / "merged")
    del METHODS["mine"]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    save(model, tmp_path / "again")
    recipes = [yaml.safe_load((tmp_path / name / "zipit_config.yml").read_text()) for name in ("merged", "again")]
    assert [recipe["method"] for recipe in recipes] == ["mine", "mine"]
    with pytest.raises(OptionError, match="unknown method 'mine'"):
        hf_zipit.read_recipe(tmp_path / "again" / "zipit_config.yml")
    text = without_local_paths((tmp_path / "again" / "zipit_config.yml").read_text())  # for an upload
    assert yaml.safe_load(text)["method"] == "mine"
    with absent_methods():
        assert Recipe(method="mine", width=0.5).method == "mine"
    with pytest.raises(OptionError, match="unknown method 'mine'"):
        Recipe(method="mine")


def test_a_plugin_is_loaded_when_it_is_used(offered):
    offered()
    assert "- backwards: from the package my-methods." in described().splitlines()
    assert "my_methods" not in sys.modules
    assert Options(method="backwards").how.sized
    assert "- backwards: pair the first unit with the last." in described().splitlines()
    assert "backwards" in usable()


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({"code": "raise RuntimeError('no licence')"}, "RuntimeError: no licence"),
        ({"code": "raise SystemExit(3)"}, "SystemExit: 3"),
        ({"code": "backwards = None"}, "my_methods:backwards does not register it"),
        ({"value": "gone_methods"}, "ModuleNotFoundError: No module named 'gone_methods'"),
        ({"value": "not a module!"}, "AttributeError"),
    ],
)
def test_a_broken_plugin_is_named_and_harms_nothing_else(offered, caplog, package, said):
    offered(**package)
    assert "backwards" in described()
    with pytest.raises(
        OptionError, match=f"the method 'backwards' of the package my-methods cannot be loaded: .*{said}"
    ):
        Options(method="backwards")
    with caplog.at_level(logging.WARNING):
        assert "backwards" not in usable()
        assert "zip" in usable()
    assert "the package my-methods cannot be loaded" in caplog.text
    assert caplog.text.splitlines()[0].endswith("it is left out")


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ({"method": "zip"}, "the package my-methods offers a method named 'zip', a malformed name or one of hf-zipit"),
        ({"method": "Zip"}, "the package my-methods offers a method named 'Zip'"),
    ],
)
def test_a_plugin_cannot_take_our_names(offered, caplog, package, said):
    with caplog.at_level(logging.WARNING):
        offered(**package)
        assert names() == list(METHODS)
    assert said in caplog.text


def test_of_two_plugins_with_one_name_the_first_is_used(offered, tmp_path, monkeypatch, caplog):
    monkeypatch.syspath_prepend(str(installed(tmp_path / "other", name="other-methods")))
    with caplog.at_level(logging.WARNING):
        offered()
        assert names().count("backwards") == 1
    assert "the packages my-methods and other-methods both offer the method 'backwards'" in caplog.text


def test_damaged_metadata_is_a_warning(offered, monkeypatch, caplog):
    offered()
    monkeypatch.setattr(Distribution, "entry_points", property(lambda self: 1 / 0))
    registry._offered.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert "backwards" not in names()
    assert "the methods of my-methods cannot be read: division by zero" in caplog.text


@pytest.mark.slow
def test_an_installed_plugin_is_compared_and_saved_as_ours_are(digits, digits_data, tmp_path):
    packages = installed(tmp_path / "packages")
    options = ["--num-images", 32, "--eval-images", 50, "--methods", "backwards,permute", "--widths", "1,1.5"]
    compared = runs(packages, "compare", *digits, "--data", digits_data, *options, "-o", tmp_path / "report")
    assert compared.returncode == 0, compared.stderr
    assert float(compared.stdout.splitlines()[-1]) < 1  # seconds to import the command line
    rows = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [(row["method"], row["width"]) for row in rows[:2]] == [("backwards", 1), ("backwards", 1.5)]
    merge = ["merge", *digits, "--data", digits_data, "--num-images", 32, "--method", "backwards"]
    made = runs(packages, *merge, "-o", tmp_path / "merged")
    assert made.returncode == 0, made.stderr
    AutoModelForImageClassification.from_pretrained(tmp_path / "merged")
    recipe = tmp_path / "merged" / "zipit_config.yml"
    again = runs(packages, "merge", recipe, "-o", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("merged", "again")]
    assert weights[0] == weights[1]
    with pytest.raises(OptionError, match="unknown method 'backwards'"):
        hf_zipit.read_recipe(recipe)


def test_the_help_is_there_with_a_broken_plugin(tmp_path):
    packages = installed(tmp_path / "packages", code="raise RuntimeError('broken')")
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "COLUMNS": "100"}
    command = [sys.executable, "-m", "hf_zipit"]
    for arguments in (["--help"], ["merge", "--help-all"]):
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert "- backwards: from the package my-methods." in done.stdout

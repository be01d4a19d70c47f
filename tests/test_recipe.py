"""Recipes: one schema for keywords, flags and files; a merged repository's recipe makes its weights again."""

import hashlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import Field

import hf_zipit
from hf_zipit import cli
from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.errors import DataError, OptionError, SourceError
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging import signature
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.merging.merge import merge_recipe
from hf_zipit.recipe import OF_THE_RUN, Recipe, read_recipe
from hf_zipit.saving import save as saving
from hf_zipit.sources.access import Access
from tests.helpers.hub import OWNER
from tests.helpers.models import images, tiny


def sha256(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def merged(digits, digits_data, tmp_path_factory):
    """A merge with no option at its default, whose parents and data lie beside it."""
    home = tmp_path_factory.mktemp("recipes")
    parents = [shutil.copytree(d, home / d.name) for d in digits]
    data = shutil.copytree(digits_data, home / "images")
    options = {"method": "zip", "cut": "layer2", "alpha": 0.2, "beta": 0.5, "compat": True, "seed": 3, "batch_size": 16}
    model = hf_zipit.merge(parents, [data, f"{data}:test"], num_images=[40, 56], tasks=["low", "high"], **options)
    return saving.save(model, home / "merged")


def test_keywords_and_flags_are_those_of_the_recipe():
    """An option is one field of `Recipe`; nothing else has to be written for it."""
    parameters = inspect.signature(hf_zipit.merge).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    rights = {"token", "trust_remote_code", "allow_pickle"}  # the user's: no file can give them
    assert not rights & set(Recipe.model_fields)
    inputs = {"sources", "data", "generator"}
    options = {name: field.default for name, field in Recipe.model_fields.items() if name not in inputs}
    assert {name: default for name, default in keywords.items() if name not in rights} == options
    for name, field in Recipe.model_fields.items():
        assert name in inputs or f"{name}: " in hf_zipit.merge.__doc__, name
        assert field.description, name
    command = typer.main.get_command(cli.app).commands["merge"]
    flags = {parameter.name: parameter.help for parameter in command.params}
    assert {*options, "data"} <= set(flags)
    assert all(flags[name].startswith(Recipe.model_fields[name].description) for name in options)
    spelled = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    assert {"--task", "--no-compat", "--num-images"} <= spelled


def test_a_new_option_is_one_field(monkeypatch):
    """A field that is added to the recipe is a keyword of a function that takes options, and a flag of a command."""

    class Longer(Recipe):
        extra: int = Field(3, ge=1, description="One more.")

    monkeypatch.setattr(signature, "Recipe", Longer)

    @signature.takes_options
    def function(sources, **options):
        """Do it.

        Args:
            sources: some.
        {options}
        """

    assert inspect.signature(function).parameters["extra"].default == 3
    assert "        extra: One more." in function.__doc__
    assert Longer.model_json_schema()["properties"]["extra"]["minimum"] == 1
    with pytest.raises(OptionError, match="extra is 0: it must be at least 1"):
        Longer(extra=0)


def test_everything_that_decides_the_result_is_recorded(merged):
    recorded = yaml.safe_load((merged / saving.RECIPE).read_text())
    assert set(recorded) == set(Recipe.model_fields) - (OF_THE_RUN - {"generator"}) - {
        "backbone",
        "balance_data",
        "base",
        "flops_budget",
        "label_column",
        "parent_accuracy",
        "preset",
    }  # a balance that was chosen is recorded
    assert recorded["data"] == ["../images", "../images:test"]
    assert recorded["num_images"] == [40, 56]
    assert [s["path"] for s in recorded["sources"]] == ["../digits-0-4", "../digits-5-9"]
    assert str(merged.parent) not in (merged / saving.RECIPE).read_text() + (merged / "config.json").read_text()


def test_the_recipe_of_a_merge_makes_the_same_weights(merged, tmp_path):
    again = saving.save(merge_recipe(merged / saving.RECIPE), merged.parent / "again")
    assert sha256(again) == sha256(merged)
    assert (again / saving.RECIPE).read_text() == (merged / saving.RECIPE).read_text()
    other = saving.save(merge_recipe(merged / saving.RECIPE, seed=4), tmp_path / "other")
    assert sha256(other) != sha256(merged)


def test_another_model_in_the_place_of_a_source_is_refused(merged, tmp_path):
    values = yaml.safe_load((merged / saving.RECIPE).read_text())
    values["sources"][0]["path"], values["sources"][1]["path"] = (str(merged.parent / "digits-5-9"),) * 2
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(SourceError, match="digits-5-9 is not the model that the recipe was written for"):
        merge_recipe(tmp_path / "recipe.yml")


def test_models_and_data_without_a_place_must_be_named(tmp_path):
    args = {"layers": (2, 1, 1, 1), "channels": (8, 16, 24, 32)}
    sources = [hf_zipit.load_source(tiny("resnet18", seed), args) for seed in (0, 1)]
    folder = saving.save(hf_zipit.merge(sources, images(16), tasks=["a", "b"]), tmp_path / "out")
    with pytest.raises(OptionError, match=r"model 1 of the recipe was a model in memory; pass the models along"):
        merge_recipe(folder / saving.RECIPE, data="anywhere")
    with pytest.raises(OptionError, match="no data: this needs images"):
        merge_recipe(folder / saving.RECIPE)
    assert read_recipe(folder / saving.RECIPE).data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [a/b, c/d]\nalhpa: 0.2", r"recipe.yml: unknown key 'alhpa'; did you mean 'alpha'\?"),
        ("token: hf_x", r"recipe.yml: unknown key 'token'; keys: sources, data, method"),
        ("sources: [{id: a/b, sha: x}]", r"recipe.yml: unknown key 'sources.0.sha'; did you mean 'sha256'\?"),
        ("alpha: much", "recipe.yml: alpha is 'much': it must be a number"),
        ("num_images: [1, two]", "recipe.yml: num_images"),
        ("num_images: [4, 0]", "num_images.1 is 0: it must be at least 1"),
        ("num_images: [4, true]", "it is not a truth value"),
        ("num_images: []", "num_images is an empty list"),
        ("num_images: 1.5", "num_images is 1.5: it must be a whole number, a list or 'all'"),
        ("alpha: .nan", "alpha is nan: it must be a finite number"),
        ("width: .inf", "width is inf: it must be a finite number"),
        (f"seed: {2**64}", "seed is a number of more than 64 bits: it must lie between"),
        (f"alpha: {'9' * 400}", "alpha is a number of more than 64 bits"),
        (f"alpha: {'9' * 5000}", "cannot read the recipe .*recipe.yml"),
        ("batch_size: 2000000", "batch_size is 2000000: it must lie between 1 and 1000000"),
        ("tasks: [a, a]", "the names must differ"),
        ("tasks: ['']", "'' cannot name a task"),
        ("tasks: [a/b]", "'a/b' cannot name a task"),
        ('tasks: ["a\\nb"]', "it holds control characters"),
        ('cut: "a\\0b"', "it holds control characters"),
        ("cut: ''", "cut is ''"),
        ("cut: [a]", "cut is .*it must be a string"),
        ("sources: {a: b}", "sources is .*it must be a list"),
        ("sources: ['', a/b]", "one of the names is empty"),
        ("data: []", "data is an empty list"),
        ("device: [cpu]", "device is .*it must be a string"),
        ("spec: 3", "spec is 3: it must be a string"),
        ("method: none", "unknown method 'none'; methods: auto, zip"),
        ("- a", "is not a recipe: it holds"),
        ("", "is not a recipe: it is empty"),
        ("# nothing", "is not a recipe: it is empty"),
        ("a: [", "cannot read the recipe"),
        ("a:\n\tb: 1", "cannot read the recipe"),
        ("alpha: 0.1\nbeta: 0.2\nalpha: 0.3", "the key 'alpha' is given twice.* line 3"),
        ("a: &x [1]\nb: *x", r"the alias '\*x' is not supported"),
        ("a: 2001-99-99", "cannot read the recipe"),
        ("a: " + "[" * 3000, "cannot read the recipe .*nested too deeply|cannot read the recipe"),
        ("a: !!python/object:os.system {}", "cannot read the recipe"),
        ("x" * 2**20 + "yy", "at most 1048576 are read"),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path, text, message):
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(OptionError, match=message) as error:
        read_recipe(tmp_path / "recipe.yml")
    assert "recipe.yml" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_recipe_that_is_no_text_or_no_file_is_refused(tmp_path):
    (tmp_path / "recipe.yml").write_bytes(b"cut: \xff")
    with pytest.raises(OptionError, match=r"it is not text in UTF-8 \(byte 5\)"):
        read_recipe(tmp_path / "recipe.yml")
    with pytest.raises(OptionError, match="it is not a file"):
        read_recipe(tmp_path)
    (tmp_path / "recipe.yml").write_bytes(b"\xef\xbb\xbfcut: none")  # as some editors begin every file
    assert read_recipe(tmp_path / "recipe.yml").cut is None


def test_relative_paths_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "here" / "a").mkdir(parents=True)
    (tmp_path / "user" / "name").mkdir(parents=True)
    file = tmp_path / "here" / "recipe.yml"
    file.write_text("sources: [a, user/name, ./gone, gone, /abs]\ndata: 'a:test'\nspec: my.yaml")
    monkeypatch.chdir(tmp_path / "here")
    recipe = read_recipe("recipe.yml")
    here = str(tmp_path / "here")
    assert recipe.sources == [f"{here}/a", "user/name", f"{here}/gone", f"{here}/gone", "/abs"]
    assert recipe.data == [f"{here}/a:test"]
    assert recipe.spec == f"{here}/my.yaml"
    monkeypatch.chdir(tmp_path)  # where user/name is a folder, which would be read instead of the model on the Hub
    with pytest.raises(OptionError, match="'user/name' is not beside the recipe, but in the current folder"):
        read_recipe(file)


def test_the_json_schema_refuses_unknown_keys_and_explains_every_key():
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(json.dumps(value["description"]) for value in schema["properties"].values())
    assert schema["properties"]["method"]["enum"] == ["auto", *METHODS]
    assert schema["properties"]["calibrate"]["enum"] == ["auto", *CALIBRATIONS]
    assert schema["properties"]["num_images"]["anyOf"][1]["items"]["minimum"] == 1
    assert Recipe(sources=["a/b"], data="d").data == ["d"]


def test_paths_are_names_and_unknown_keywords_are_a_type_error():
    recipe = Recipe(sources=[Path("a"), "b/c"], data=Path("d"), spec=Path("s.yaml"))
    assert recipe.sources == ["a", "b/c"]
    assert recipe.data == ["d"]
    assert recipe.spec == "s.yaml"
    with pytest.raises(TypeError, match="unexpected keyword argument 'metod'"):
        hf_zipit.merge(["a", "b"], metod="zip")
    with pytest.raises(TypeError, match="unexpected keyword argument 'generator'"):
        hf_zipit.merge(["a", "b"], generator="me")


def test_models_of_the_hub_are_pinned_to_their_commit(hub, digits, digits_data, tmp_path):
    first = {name: hub.add(f"user/{name}", folder).at()[0] for name, folder in zip("ab", digits, strict=True)}
    options = {"num_images": 24, "tasks": ["a", "b"]}
    folder = saving.save(hf_zipit.merge(["user/a", "user/b"], digits_data, **options), tmp_path / "merged")
    recorded = yaml.safe_load((folder / saving.RECIPE).read_text())["sources"]
    assert [(source["id"], source["revision"]) for source in recorded] == [(f"user/{n}", first[n]) for n in "ab"]
    hub.repos["user/a"].commit({p.name: p.read_bytes() for p in digits[1].iterdir()}, "another model")
    assert sha256(saving.save(merge_recipe(folder / saving.RECIPE), tmp_path / "again")) == sha256(folder)


def test_data_sets_of_the_hub_are_pinned_to_their_commit_and_read_with_the_token(
    datasets_hub, digits, digits_data, tmp_path, monkeypatch
):
    monkeypatch.delenv("HF_TOKEN")
    data = datasets_hub.add("user/data", digits_data, private=True)
    commit = data.at()[0]
    options = {"num_images": 24, "token": OWNER}
    with pytest.raises(DataError, match="cannot read data from user/data"):
        hf_zipit.merge(digits, "user/data", num_images=24)
    merged = hf_zipit.merge(digits, "user/data:test", **options)
    folder = saving.save(merged, tmp_path / "merged")
    assert yaml.safe_load((folder / saving.RECIPE).read_text())["data"] == [f"user/data@{commit}:test"]
    assert f"- user/data@{commit}:test" in (folder / "README.md").read_text()
    assert merged.config.zipit["data"][0]["name"] == "user/data:test"
    assert commit in merged.sidecars[saving.RECIPE]  # of a model that is pushed from memory
    merged.locations = {**merged.locations, "data": [f"user/data@{commit}"]}  # without a split: no path either
    whole = saving.save(merged, tmp_path / "whole")
    assert yaml.safe_load((whole / saving.RECIPE).read_text())["data"] == [f"user/data@{commit}"]
    data.commit({"test.parquet": (digits_data / "train.parquet").read_bytes()}, "other images")
    again = merge_recipe(folder / saving.RECIPE, Access(token=OWNER))
    assert sha256(saving.save(again, tmp_path / "again")) == sha256(folder)
    other = merge_recipe(folder / saving.RECIPE, Access(token=OWNER), data=["user/data:test"])
    assert sha256(saving.save(other, tmp_path / "other")) != sha256(folder)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    plan = plan_merge(Recipe(sources=[str(d) for d in digits], data=["user/data", f"user/data@{commit}"]))
    assert plan.data == {"user/data": 0, f"user/data@{commit}": 0}  # all that it holds is here


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("method: permute\nwidth: 0.5", {"method": "zip"}),
        ("method: zip\nbalance: auto", {"method": "mudsc-zip"}),
        ("width: 1.5\nflops_budget: 1.2", {"width": 1}),
        ("alpha: 3", {"alpha": 0.1}),
        ("method: mudsc-zip\nbalance_data: [d]", {"balance": "auto"}),
    ],
)
def test_what_is_wrong_in_a_file_can_be_put_right_beside_it(tmp_path, file, flags):
    (tmp_path / "recipe.yml").write_text(file)
    with pytest.raises(OptionError, match=r"recipe\.yml: "):
        read_recipe(tmp_path / "recipe.yml")
    recipe = read_recipe(tmp_path / "recipe.yml", **flags)
    assert all(getattr(recipe, name) == value for name, value in flags.items())


def test_what_is_wrong_beside_a_file_is_not_laid_on_it(tmp_path):
    (tmp_path / "recipe.yml").write_text("cut: layer2")
    with pytest.raises(OptionError, match=r"^alpha is 3: it must lie between 0 and 1"):
        read_recipe(tmp_path / "recipe.yml", alpha=3)


def test_truth_values_and_endless_numbers_are_no_numbers():
    for values in ({"width": True}, {"balance": False}, {"num_images": True}):
        with pytest.raises(OptionError, match="it is not a truth value"):
            Recipe(**values)
    for name in ("width", "flops_budget", "alpha", "beta", "balance"):
        for value in ("inf", "nan"):
            with pytest.raises(OptionError, match=f"{name} is {value}: it must be a finite number"):
                Recipe(**{name: float(value)})


def test_an_empty_path_of_a_backbone_is_refused():
    with pytest.raises(OptionError, match="backbone is ''"):
        Recipe(backbone="")

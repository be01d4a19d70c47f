"""Recipes: one schema for keywords, flags and files; a merged repository's recipe makes its weights again."""

import hashlib
import inspect
import json
import shutil

import pytest
import typer
import yaml

import hf_zipit
from hf_zipit import cli
from hf_zipit.errors import DataError, OptionError, SourceError
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.merging.from_recipe import merge_recipe
from hf_zipit.recipe import OF_THE_RUN, Recipe, make_recipe, read_recipe
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
    options = {"cut": "layer2", "alpha": 0.2, "beta": 0.5, "compat": True, "seed": 3, "batch_size": 16}
    model = hf_zipit.merge(parents, [data, f"{data}:test"], num_images=[40, 56], tasks=["low", "high"], **options)
    return saving.save(model, home / "merged")


def test_keywords_flags_and_recipes_agree():
    """An option that is added in one place only fails here."""
    keywords = {
        name: parameter.default if parameter.kind is parameter.KEYWORD_ONLY else None
        for name, parameter in inspect.signature(hf_zipit.merge).parameters.items()
    }
    rights = {"token", "trust_remote_code", "allow_pickle"}  # the user's: no file can give them
    assert not rights & set(Recipe.model_fields)
    keywords = {name: default for name, default in keywords.items() if name not in rights}
    keys = {name: field.default for name, field in Recipe.model_fields.items() if name != "generator"}
    assert keywords == {**keys, "sources": None}
    command = typer.main.get_command(cli.app).commands["merge"]
    flags = {parameter.name for parameter in command.params}
    assert set(keys) - {"sources"} <= flags
    assert {"--task", "--no-compat", "--num-images"} <= {
        f for p in command.params for f in [*p.opts, *p.secondary_opts]
    }


def test_everything_that_decides_the_result_is_recorded(merged):
    recorded = yaml.safe_load((merged / saving.RECIPE).read_text())
    assert set(recorded) == set(Recipe.model_fields) - (OF_THE_RUN - {"generator"}) - {
        "backbone",
        "balance_data",
        "flops_budget",
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
    with pytest.raises(OptionError, match=r"model 1 of the recipe was a model in memory: name the models beside"):
        merge_recipe(folder / saving.RECIPE, data="anywhere")
    with pytest.raises(OptionError, match="no data: merging needs images"):
        merge_recipe(folder / saving.RECIPE)
    assert read_recipe(folder / saving.RECIPE).data is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: [a/b, c/d]\nalhpa: 0.2", r"recipe.yml: unknown key 'alhpa'; did you mean 'alpha'\?"),
        ("token: hf_x", r"recipe.yml: unknown key 'token'; keys: sources, data, method"),
        ("sources: [{id: a/b, sha: x}]", r"recipe.yml: unknown key 'sources.0.sha'; did you mean 'sha256'\?"),
        ("alpha: much", "recipe.yml: alpha is 'much': input should be a valid number"),
        ("num_images: [1, two]", "recipe.yml: num_images"),
        ("- a", "is no recipe"),
        ("a: [", "cannot read the recipe"),
    ],
)
def test_a_wrong_recipe_names_file_and_key(tmp_path, text, message):
    (tmp_path / "recipe.yml").write_text(text)
    with pytest.raises(OptionError, match=message):
        read_recipe(tmp_path / "recipe.yml")


def test_relative_paths_are_relative_to_the_recipe(tmp_path, monkeypatch):
    (tmp_path / "here" / "a").mkdir(parents=True)
    (tmp_path / "user" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "here" / "recipe.yml"
    file.write_text("sources: [a, user/name, ./gone, /abs]\ndata: 'a:test'\nspec: my.yaml")
    recipe = read_recipe(file)
    here = str(tmp_path / "here")
    assert recipe.sources == [f"{here}/a", "user/name", f"{here}/gone", "/abs"]
    assert (recipe.data, recipe.spec) == ([f"{here}/a:test"], f"{here}/my.yaml")


def test_the_json_schema_refuses_unknown_keys_and_explains_every_key():
    schema = Recipe.model_json_schema()
    assert schema["additionalProperties"] is False
    assert all(json.dumps(value["description"]) for value in schema["properties"].values())
    assert make_recipe(sources=["a/b"], data="d").arguments()["data"] == ["d"]


def test_models_of_the_hub_are_pinned_to_their_commit(hub, digits, digits_data, tmp_path):
    first = {name: hub.add(f"user/{name}", folder).at()[0] for name, folder in zip("ab", digits, strict=True)}
    options = {"num_images": 24, "tasks": ["a", "b"]}
    folder = saving.save(hf_zipit.merge(["user/a", "user/b"], digits_data, **options), tmp_path / "merged")
    recorded = yaml.safe_load((folder / saving.RECIPE).read_text())["sources"]
    assert [(source["id"], source["revision"]) for source in recorded] == [(f"user/{n}", first[n]) for n in "ab"]
    hub.repos["user/a"].commit({p.name: p.read_bytes() for p in digits[1].iterdir()}, "another model")
    assert sha256(saving.save(merge_recipe(folder / saving.RECIPE), tmp_path / "again")) == sha256(folder)


@pytest.fixture
def datasets_hub(hub, monkeypatch, tmp_path):
    """The Hub, for the library of data sets too."""
    import datasets

    changes = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False, "HF_DATASETS_CACHE": tmp_path / "datasets"}
    for name, value in changes.items():
        monkeypatch.setattr(datasets.config, name, value)
    return hub


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
    assert commit in merged.companions[saving.RECIPE]  # of a model that is pushed from memory
    data.commit({"test.parquet": (digits_data / "train.parquet").read_bytes()}, "other images")
    again = merge_recipe(folder / saving.RECIPE, Access(token=OWNER))
    assert sha256(saving.save(again, tmp_path / "again")) == sha256(folder)
    other = merge_recipe(folder / saving.RECIPE, Access(token=OWNER), data=["user/data:test"])
    assert sha256(saving.save(other, tmp_path / "other")) != sha256(folder)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    plan = plan_merge(make_recipe(sources=[str(d) for d in digits], data=["user/data", f"user/data@{commit}"]))
    assert plan.data == {"user/data": 0, f"user/data@{commit}": 0}  # all that it holds is here

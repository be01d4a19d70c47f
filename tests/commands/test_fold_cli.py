"""`hf-zipit fold` on the command line: what it prints, writes and reproduces."""

import json

import yaml


def test_a_fold_says_what_became_of_the_model(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 150, "--width", 0.5, "--eval-data", digits_data]
    code, printed, err = run("fold", digits[0], *options, "-o", tmp_path / "out")
    assert code == 0, err
    assert printed.strip() == str(tmp_path / "out")
    assert "Chosen: method select, calibrate refit\n" in err
    assert "The smaller model should keep" in err
    assert "trunk of" not in err
    assert "6 of 6 feature spaces are smaller" in err
    lines = [line.split() for line in err.splitlines()]
    before = next(line for line in lines if line[:1] == ["before"])
    after = next(line for line in lines if line[:1] == ["after"])
    assert before[1:] == ["99.5", "25", "M", "1.00", "77.72", "k", "1.00"]
    assert float(after[1]) > 95
    assert after[2:] == ["6.472", "M", "0.26", "19.79", "k", "0.25"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| merged | " in card
    assert "ensemble" not in card
    assert "`hf-zipit fold zipit_config.yml" in card
    recipe = yaml.safe_load((tmp_path / "out" / "zipit_config.yml").read_text())
    assert (recipe["method"], recipe["calibrate"], recipe["width"]) == ("select", "refit", 0.5)
    code, _, err = run("fold", tmp_path / "out" / "zipit_config.yml", "-o", tmp_path / "again")
    assert code == 0, err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]
    code, _, err = run("fold", tmp_path / "out" / "zipit_config.yml", "--width", 1, "-o", tmp_path / "other")
    assert code == 2


def test_a_fold_without_images_and_its_plan(run, digits, tmp_path):
    code, printed, err = run("fold", digits[0], "--width", 0.5, "--dry-run")
    assert code == 0, err
    assert "after" in printed
    assert "6.472 M  19.79 k" in printed
    code, printed, err = run("fold", digits[0], "--width", 0.5, "-o", tmp_path / "out", "--json")
    assert code == 0, err
    found = json.loads(printed)
    assert found["choice"]["reasons"][0].startswith("weight-kmeans")
    assert found["recipe"]["calibrate"] == "repair-weights"
    assert found["kept"] == {}


def test_a_recipe_of_several_models_is_no_fold(run, digits, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump({"sources": [str(folder) for folder in digits], "width": 0.5}))
    code, _, err = run("fold", recipe, "-o", tmp_path / "out")
    assert code == 2
    assert "is a recipe of 2 models: run it with hf-zipit merge" in err

"""The choice and the verdict on the command line: printed, recorded, required."""

import json

import pytest
import yaml

FAST = ["--method", "average", "--calibrate", "none", "--num-images", 60]


def test_the_plain_command_says_what_it_chose_and_how_good_the_result_is(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 150, "--parent-accuracy", 0.99, "--parent-accuracy", 0.98]
    code, printed, err = run("merge", *digits, *options, "-o", tmp_path / "out")
    assert code == 0, err
    assert printed.strip() == str(tmp_path / "out")
    assert "Chosen: method select, calibrate refit-joint" in err
    assert "Cost: 1.00 times the FLOPs and 1.00 times the parameters of one parent" in err
    assert "- the models have initialisations of their own" in err
    assert "The merge should keep" in err
    recipe = yaml.safe_load((tmp_path / "out" / "zipit_config.yml").read_text())
    assert (recipe["method"], recipe["calibrate"], recipe["num_images"]) == ("select", "refit-joint", 150)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    verdict = config["zipit"]["verdict"]
    assert verdict["kept"] > 0.9
    assert all(0.8 < one["expected"] < 1 for one in verdict["tasks"].values())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- chosen because: `the models have initialisations of their own" in card
    assert "## Verdict" in card
    assert f"It should keep {100 * verdict['kept']:.1f} % of the accuracy of its parents" in card

    code, _, err = run("merge", tmp_path / "out" / "zipit_config.yml", "-o", tmp_path / "again")
    assert code == 0, err
    assert "Chosen" not in err  # the recipe holds what was chosen
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert weights[0] == weights[1]


def test_a_merge_below_what_is_required_is_not_written(run, digits, digits_data, tmp_path):
    arguments = ["merge", *digits, "--data", digits_data, *FAST, "-o", tmp_path / "out"]
    code, printed, err = run(*arguments, "--require", 0.9)
    assert code == 1
    assert not printed
    assert "The merge should keep" in err  # the verdict is printed all the same
    assert "0.9 agreement with the parents is required, found: " in err
    assert "nothing was written" in err
    assert not (tmp_path / "out").exists()
    code, _, err = run(*arguments, "--require", 0.01)
    assert code == 0, err
    for value, flags, said in (
        (90, [], "--require is 90: give a share between 0 and 1"),
        ("nan", [], "--require is nan"),
        (0.5, ["--no-verdict"], "leave out --no-verdict"),
    ):
        code, _, err = run(*arguments, "--overwrite", "--require", value, *flags)
        assert code == 2
        assert said in err


def test_json_holds_the_verdict_and_nothing_else_is_printed_with_it(run, digits, digits_data, tmp_path):
    arguments = ["merge", *digits, "--data", digits_data, *FAST, "-o", tmp_path / "out"]
    code, printed, _ = run(*arguments, "--json")
    assert code == 0
    assert set(json.loads(printed)["verdict"]["tasks"]) == {"digits-0-4", "digits-5-9"}
    code, _, err = run(*arguments, "--overwrite", "-q")
    assert code == 0
    assert not err.strip()
    code, printed, err = run(*arguments, "--overwrite", "--no-verdict", "--json")
    assert "verdict" not in json.loads(printed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "zippit"], "unknown preset 'zippit'; presets: zipit, mudsc, git-rebasin, c2m3, pleas"),
        (["--parent-accuracy", 0.5], "parent_accuracy has 1 numbers, but there are 2 tasks"),
        (["--parent-accuracy", 2], "parent_accuracy.0 is 2: it must be at most 1"),
        (["--compat"], "compat follows the authors' code"),
        (["--num-images", "some"], "num_images"),
    ],
)
def test_what_cannot_be_is_refused(run, digits, digits_data, tmp_path, flags, message):
    code, _, err = run("merge", *digits, "--data", digits_data, *flags, "-o", tmp_path / "out")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "out").exists()


def test_a_preset_sets_what_is_not_given(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--preset", "zipit", "--no-verdict", "--num-images", 40]
    code, _, err = run("merge", *digits, *options, "-o", tmp_path / "out")
    assert code == 0, err
    recipe = yaml.safe_load((tmp_path / "out" / "zipit_config.yml").read_text())
    assert (recipe["method"], recipe["calibrate"]) == ("zip", "batchnorm")
    assert "preset" not in recipe

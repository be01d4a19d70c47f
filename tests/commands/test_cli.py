"""The command line as users run it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import typer

from hf_zipit import cli
from hf_zipit.commands.help import EXAMPLES, GROUPS
from hf_zipit.commands.json_output import OUTPUTS, undocumented

UNDESCRIBED = "test_efficientnet"  # a small architecture of timm that no spec describes


def test_merge_and_eval(run, digits, digits_data, tmp_path):
    out = tmp_path / "merged"
    options = ["--cut", "layer2", "--method", "zip", "--calibrate", "batchnorm", "--alpha", 0.1, "--beta", 0.8]
    options += ["--num-images", 128]
    code, printed, _ = run("merge", *digits, "--data", digits_data, "--data", digits_data, *options, "-o", out)
    assert code == 0
    assert printed.strip() == str(out)
    few = ["--num-images", 150]
    code, printed, _ = run("eval", out, "--data", digits_data, "--data", digits_data, *few, "--json")
    rows = json.loads(printed)["rows"]
    assert [row["model"] for row in rows] == ["merged", "parent:digits-0-4", "parent:digits-5-9", "ensemble"]
    assert set(rows[0]) == {"model", "tasks", "average", "joint", "flops", "parameters", "images"}
    assert rows[0]["images"] == {"digits-0-4": 77, "digits-5-9": 73}
    assert rows[1]["flops"] < rows[0]["flops"] < rows[3]["flops"]
    code, printed, _ = run("eval", out, "--data", digits_data, *few, "--update-card")
    assert code == 0
    assert "ensemble" in printed
    text = (out / "README.md").read_text()
    assert "| ensemble |" in text
    assert "model-index:" in text
    assert "(results.png)" in text
    assert (out / "results.png").stat().st_size > 10000
    assert "FLOPs" in printed
    assert " M  " in printed
    _inspects(run, out, rows[0])


def _inspects(run, merged, row):
    """`inspect` tells what the merge is, and what evaluation counts."""
    found = json.loads(run("inspect", merged, "--json")[1])
    first = found["tasks"][0]
    assert first["task"] == "digits-0-4"
    assert first["classes"] == list("01234")
    assert found["cut"] == "layer2"
    assert found["method"] == "zip"
    assert found["width"] == 1
    assert found["flops"] == row["flops"]
    assert found["parameters"] == row["parameters"]
    for key in ("flops", "parameters"):
        assert found["trunk"][key] + sum(head[key] for head in found["heads"]) == found[key]
        assert all(head[key] > 0 for head in found["heads"])
    text = run("inspect", merged)[1]
    assert "2 models merged by zip up to layer2; width 1, calibration batchnorm" in text
    assert "head: digits-5-9" in text
    code, _, err = run("inspect", merged, "--spec", "mine.yaml")
    assert code == 2
    assert "is a merge and has its own spec: leave out --spec" in err


def test_cache_is_shown_cleared_and_left_alone(run, digits, digits_data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ZIPIT_CACHE", str(tmp_path / "cache"))
    options = ["--data", digits_data, "--num-images", 32, "--calibrate", "none"]
    assert run("merge", *digits, *options, "--no-cache", "-o", tmp_path / "a")[0] == 0
    assert "0 B of at most 10.74 GB" in run("cache")[1]
    assert run("merge", *digits, *options, "-o", tmp_path / "b")[0] == 0
    (entry,) = json.loads(run("cache", "--json")[1])["entries"]
    assert entry["models"] == ["digits-0-4", "digits-5-9"]
    assert entry["data"] == ["digits"]
    assert entry["spaces"] == 6
    assert re.search(r"digits-0-4, digits-5-9 +digits +6 ", run("cache")[1])
    assert run("cache")[1].splitlines()[1].startswith(entry["id"][:8])
    assert "B freed" in run("cache", "--clear")[1]
    assert json.loads(run("cache", "--json")[1])["entries"] == []
    assert json.loads(run("cache", "--clear", "--json")[1])["freed"] == 0


@pytest.mark.slow
def test_accuracies_license_and_ordinary_checkpoints(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 32, "--license", "mit"]
    code, _, err = run("merge", *digits, *options, "-o", tmp_path / "a", "--eval-data", f"{digits_data}:test")
    assert code == 0
    assert err == ""
    text = (tmp_path / "a" / "README.md").read_text()
    assert "| merged |" in text
    assert "license: mit" in text
    assert "name: digits:test" in text
    code, _, err = run("export", tmp_path / "a", "--format", "timm", "-o", tmp_path / "b")
    assert code == 1
    assert "no ordinary timm checkpoint of a cifar_resnet20: timm has no such architecture" in err
    code, _, err = run("merge", *digits, *options, "--format", "timm", "--eval-data", "x", "-o", tmp_path / "b")
    assert code == 2
    assert "--eval-data needs --format zipit" in err
    assert not (tmp_path / "b").exists()


def test_a_dry_run_writes_nothing(run, digits, tmp_path):
    code, printed, err = run("merge", *digits, "--cut", "layer2", "--dry-run", "--data", "nowhere")
    assert code == 0
    assert err == ""
    assert "6 spaces" not in printed
    assert "8 legal cuts: conv1" in printed
    assert "4 spaces of" in printed
    assert json.loads(run("merge", *digits, "--dry-run", "--json")[1])["parents_parameters"] > 100000
    assert run("merge", *digits, "--dry-run", "--cut", "nowhere")[0] == 2
    assert list(tmp_path.iterdir()) == []


def test_options_that_do_nothing_are_named(run, digits, tmp_path):
    options = ["--method", "average", "--calibrate", "none", "--alpha", 0.5]
    code, _, err = run("merge", *digits, *options, "-o", tmp_path / "out")
    assert code == 0
    (warning,) = (line for line in err.splitlines() if line.startswith("Warning: "))
    assert warning == "Warning: alpha is 0.5, which average does not use: leave it out"


def test_recipes_are_checked_and_shown(run, tmp_path):
    file = tmp_path / "recipe.yml"
    file.write_text("sources: [user/a, user/b]\ncut: layer2\n")
    code, printed, _ = run("recipe", file)
    assert code == 0
    assert "beta: 0.8" in printed
    assert "cut: layer2" in printed
    assert json.loads(run("recipe", file, "--json")[1])["recipe"]["sources"] == ["user/a", "user/b"]
    schema = json.loads(run("recipe", "--schema")[1])
    assert schema["additionalProperties"] is False
    assert schema["properties"]["alpha"]["default"] == 0.1
    assert run("recipe")[0] == 2
    file.write_text("cuts: layer2")
    assert "unknown key 'cuts'; did you mean 'cut'?" in run("recipe", file)[2]
    file.write_text("sources: [a, user/b]\ndata: ./images\nspec: mine.yaml\ncut: none")
    shown = json.loads(run("recipe", file, "--json")[1])["recipe"]  # paths that mean the same in every folder
    assert shown["sources"] == [str(tmp_path / "a"), "user/b"]
    assert shown["data"] == [str(tmp_path / "images")]
    assert shown["spec"] == str(tmp_path / "mine.yaml")
    assert shown["cut"] is None


@pytest.mark.slow
def test_verbosity(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 32, "--method", "average", "--calibrate", "none"]
    code, printed, told = run("merge", *digits, *options, "-o", tmp_path / "a", "--json")
    assert code == 0
    assert told == ""
    assert json.loads(printed)["tasks"] == ["digits-0-4", "digits-5-9"]
    assert "Info: merged 6 spaces by average" in run("merge", *digits, *options, "-o", tmp_path / "b", "-v")[2]
    assert "Debug: layer1.0.mid1" in run("merge", *digits, *options, "-o", tmp_path / "c", "-vv")[2]
    assert run("trace", UNDESCRIBED, "-q", "--json")[2] == ""
    assert run("trace", UNDESCRIBED)[2] == ""  # that no spec describes it is why it is traced
    assert "Info: traced and checked: 0." in run("trace", UNDESCRIBED, "-v")[2]
    assert "Warning: no spec describes this EfficientNet" in run("inspect", UNDESCRIBED)[2]


def test_a_recipe_file_with_flags_beside_it(run, digits, digits_data, tmp_path):
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"sources: [{digits[0]}, {digits[1]}]\ndata: {digits_data}\nnum_images: 64\ncut: layer1\n")
    assert run("merge", recipe, "--cut", "layer2", "-o", tmp_path / "a")[0] == 0
    assert "cut: layer2" in (tmp_path / "a" / "zipit_config.yml").read_text()
    code, _, err = run("merge", recipe, "--num-images", 1, "--num-images", 2, "--num-images", 3, "-o", tmp_path / "b")
    assert code == 2
    assert "3 numbers of images for 1 data sets" in err
    recipe.write_text("colour: red")
    code, _, err = run("merge", recipe, "-o", tmp_path / "b")
    assert code == 2
    assert "recipe.yml: unknown key 'colour'" in err


@pytest.mark.slow
def test_parents_that_moved_can_be_named_and_must_be_the_same(run, digits, digits_data, tmp_path):
    moved = [shutil.copytree(d, tmp_path / d.name) for d in digits]
    out = tmp_path / "merged"
    assert run("merge", *moved, "--data", digits_data, "--num-images", 64, "-o", out)[0] == 0
    for folder in moved:
        shutil.rmtree(folder)
    evaluate = ["eval", out, "--data", digits_data, "--num-images", 100]
    code, printed, _ = run(*evaluate, "--json")
    assert [row["model"] for row in json.loads(printed)["rows"]] == ["merged"]
    given = ["--parent", digits[0], "--parent", digits[1]]
    assert len(json.loads(run(*evaluate, *given, "--json")[1])["rows"]) == 4
    code, _, err = run(*evaluate, "--parent", digits[1], "--parent", digits[0])
    assert code == 1
    assert "is not the model that was merged as task 'digits-0-4'" in err


def test_inspect_and_check_spec(run, digits):
    code, printed, _ = run("inspect", "resnet18", "--json")
    found = json.loads(printed)
    assert code == 0
    assert len(found["spaces"]) == 12
    cut = next(c for c in found["cuts"] if c["name"] == "layer2.1")
    assert cut["trunk_flops"] / cut["flops"] == pytest.approx(0.547, abs=1e-3)
    assert "layer2.1" in run("inspect", "resnet18")[1]
    code, printed, _ = run("check-spec", digits[0])
    assert code == 0
    assert "6 spaces" in printed
    assert json.loads(run("check-spec", digits[0], "--json")[1])["cuts"] == 8


def test_trace_writes_a_spec_that_checks(run, tmp_path):
    file = tmp_path / "mine.yaml"
    code, printed, err = run("trace", UNDESCRIBED, "-o", file)
    assert code == 0
    assert printed.strip() == str(file)
    assert "13 spaces" in run("check-spec", UNDESCRIBED, "--spec", file)[1]
    code, _, err = run("trace", UNDESCRIBED, "-o", file)
    assert code == 2
    assert "already exists" in err


def test_a_users_own_spec_file(run, digits, tmp_path):
    from hf_zipit.specs.parser import folder

    text = (folder() / "timm_resnet.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    assert run("check-spec", digits[0], "--spec", mine)[0] == 0
    mine.write_text(text.replace("    bn1: mid1\n", ""))
    code, _, err = run("check-spec", digits[0], "--spec", mine)
    assert code == 1
    assert "mine.yaml does not cover layer1.0.bn1.bias" in err


# 2: something on the command line is missing, unknown or wrong, whatever finds it; 1: everything else
MERGE = ["merge", "A", "B", "--data", "D", "-o", "OUT"]
EXITS = [
    ([*MERGE, "--cut", "layer7"], 2, "unknown cut 'layer7'; legal cuts: conv1, bn1"),
    ([*MERGE, "--alpha", "3"], 2, "alpha is 3"),
    ([*MERGE, "--beta", "-1"], 2, "beta is -1"),
    ([*MERGE, "--method", "magic"], 2, "unknown method 'magic'"),
    ([*MERGE, "--calibrate", "magic"], 2, "unknown calibration 'magic'"),
    ([*MERGE, "--num-images", "100000"], 2, "1347 images, and num_images is 100000; lower it"),
    ([*MERGE, "--num-images", "0"], 2, "num_images is 0: it must be at least 1"),
    ([*MERGE, "--alpha", "nan"], 2, "alpha is nan: it must be a finite number"),
    ([*MERGE, "--width", "inf"], 2, "width is inf: it must be a finite number"),
    ([*MERGE, "--seed", str(2**65)], 2, "seed is a number of more than 64 bits"),
    ([*MERGE, "--task", "a/b", "--task", "c"], 2, "'a/b' cannot name a task"),
    ([*MERGE, "--task", "a", "--task", "a"], 2, "the names must differ"),
    ([*MERGE, "--device", "meta"], 2, "cannot run on device 'meta'"),
    (["merge", "GONE", "GONE", "--data", "GONE", "-o", "OUT", "--device", "foo"], 2, "cannot run on device 'foo'"),
    (["merge", "GONE", "GONE", "--data", "GONE", "-o", "x" * 300], 2, "File name too long"),
    (["merge", "GONE", "GONE", "--data", "GONE", "-o", "a\nb"], 2, "control characters"),
    (["eval", "GONE", "--data", "GONE", "--device", "foo"], 2, "cannot run on device 'foo'"),
    (["eval", "GONE", "--data", "GONE", "--batch-size", "0"], 2, "Invalid value for '--batch-size'"),
    ([*MERGE, "--num-images", "1", "--num-images", "2"], 2, "2 numbers of images for 1 data sets"),
    ([*MERGE, "--data", "D", "--data", "D"], 2, "3 data sets for 2 models"),
    ([*MERGE, "--task", "a"], 2, "2 different names are needed"),
    ([*MERGE, "--batch-size", "0"], 2, "batch_size is 0"),
    ([*MERGE, "--no-such-flag"], 2, "No such option"),
    ([*MERGE, "--device", "foo"], 2, "cannot run on device 'foo'"),
    ([*MERGE, "--format", "onnx"], 2, "unknown format 'onnx'"),
    ([*MERGE, "--format", "transformers"], 2, "these are models of timm"),
    ([*MERGE, "--format", "timm", "--cut", "layer1"], 2, "leave out --cut and --flops-budget"),
    ([*MERGE, "--format", "timm"], 1, "timm has no such architecture, it comes with hf-zipit"),
    ([*MERGE, "--push-to", "a name"], 2, "'a name' is not a valid repository id"),
    ([*MERGE, "--push-to", "u/x", "--create-pr", "--revision", "v1"], 2, "a pull request goes to main"),
    ([*MERGE, "--push-to", "u/x"], 1, "HF_HUB_OFFLINE is set"),
    (["merge", "A", "B", "--data", "D:validation", "-o", "OUT"], 2, "has no split 'validation'; it has train, test"),
    (["merge", "A", "B", "--data", "GONE", "-o", "OUT"], 1, "no data at"),
    (["merge", "A", "GONE", "--data", "D", "-o", "OUT"], 1, "neither a folder nor a Hub id"),
    (["merge", "A", "--data", "D", "-o", "OUT"], 2, "1 model given: a merge needs two or more"),
    (["fold", "A", "-o", "OUT"], 2, "give a width below 1, or a flops_budget below 1"),
    (["fold", "A", "--width", "1.5", "-o", "OUT"], 2, "width is 1.5: a fold makes a model smaller"),
    (["fold", "A", "B", "--width", "0.5", "-o", "OUT"], 2, "unexpected extra argument"),
    (["fold", "A", "--width", "0.5", "--base", "B", "-o", "OUT"], 2, "No such option"),
    (["fold", "A", "--width", "0.5", "--method", "zip", "-o", "OUT"], 2, "no data: this needs images"),
    (["fold", "A", "--width", "0.5", "--format", "transformers", "-o", "OUT"], 2, "these are models of timm"),
    (["fold", "A", "--flops-budget", "0.5", "--data", "D", "--format", "timm", "-o", "OUT"], 2, "--flops-budget"),
    (["merge", "A", "B", "--method", "zip", "-o", "OUT"], 2, "no data: this needs images"),
    (["merge", "GONE.yml", "-o", "OUT"], 2, "cannot read the recipe"),
    (["merge"], 2, "Missing argument"),
    (["eval", "A", "--data", "D"], 1, "is not a merged model"),
    (["eval", "./GONE", "--data", "D"], 1, "there is no such folder"),
    (["eval", "A"], 2, "Missing option '--data'"),
    (["eval", "A", "--data", "D", "--average-heads"], 2, "--average-heads needs --class-embeddings"),
    (["eval", "user/x", "--data", "D", "--update-card"], 2, "only the model card in a local folder can be updated"),
    (["export", "A", "--format", "timm", "-o", "OUT"], 1, "is not a merged model"),
    (["export", "A", "--format", "zipit", "-o", "OUT"], 2, "use --format plain for an ordinary checkpoint"),
    (["export", "A", "--format", "onnx", "-o", "OUT"], 2, "whose name ends with .onnx"),
    (["export", "A", "--format", "torch", "-o", "OUT.pt2"], 1, "is not a merged model"),
    (["export", "A", "--format", "timm"], 2, "Missing option '-o'"),
    (["push", "A", "u/x"], 1, "HF_HUB_OFFLINE is set"),
    (["push", "A", "a name"], 2, "'a name' is not a valid repository id"),
    (["inspect", "GONE"], 1, "is not a folder, not a Hub id (user/name), and not a timm architecture"),
    (["inspect", "user/x"], 1, "nor fully cached, and HF_HUB_OFFLINE is set"),
    (["check-spec", "A", "--spec", "GONE"], 1, "GONE"),
    (["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--methods", "magic"], 2, "unknown method 'magic'"),
    (
        ["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--methods", "permute", "zip"],
        2,
        "'zip' is a method, not a model: separate methods by commas",
    ),
    (["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--calibrate", "hope"], 2, "unknown calibration 'hope'"),
    (["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--cuts", ","], 2, "no cuts to compare"),
    (["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--widths", "nan"], 2, "width is nan"),
    (
        ["compare", "GONE", "B", "--data", "D", "-o", "OUT", "--eval-images", "0"],
        2,
        "Invalid value for '--eval-images'",
    ),
    (["compare", "A", "B", "--data", "D", "-o", "OUT", "--balance", "much"], 2, "balance is 'much'"),
    (["compare", "A", "--data", "D", "-o", "OUT"], 2, "needs two or more"),
    (["recipe", "GONE.yml"], 2, "cannot read the recipe GONE.yml: there is no such file"),
    (["recipe"], 2, "give either a recipe file or --schema"),
    (["trace", "A", "-o", "."], 2, "already exists"),
    (["trace", "GONE", "-o", "a\nb/x.yaml"], 2, "control characters"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), EXITS, ids=lambda value: " ".join(value[:8]) if isinstance(value, list) else None
)
def test_bad_input_is_one_message_its_exit_code_and_no_folder(
    run, digits, digits_data, tmp_path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    places = {"A": digits[0], "B": digits[1], "D": digits_data, "D:validation": f"{digits_data}:validation"}
    found, printed, err = run(*(places.get(argument, argument) for argument in arguments))
    assert found == code, err
    assert message in " ".join(err.split()), err
    assert "Traceback" not in err
    assert printed == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_folder_is_refused_before_any_work(run, digits, digits_data, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run("merge", *digits, "--data", "nowhere", "-o", tmp_path)
    assert code == 2
    assert "exists already" in err
    code, _, err = run("merge", *digits, "--data", "nowhere", "-o", tmp_path, "--overwrite")
    assert code == 2
    assert "is not an earlier merge" in err


def test_an_output_below_a_file_and_a_model_that_is_no_merge_are_refused(run, digits, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = run("merge", *digits, "--data", "nowhere", "-o", tmp_path / "file" / "out")
    assert code == 2
    assert "is not a folder" in err
    code, _, err = run("eval", digits[0], "--data", "nowhere")
    assert code == 1
    assert "is not a merged model; pass a folder written by `hf-zipit merge`" in err


def test_what_nobody_foresaw_is_one_message_too(run, monkeypatch, tmp_path):
    (tmp_path / "recipe.yml").write_text("cut: layer2")
    faults = {
        KeyError("x"): "Error: internal error (KeyError: 'x'); run again with --debug and report it",
        KeyError(): "Error: internal error (KeyError); run again with --debug and report it",
        PermissionError(
            13, "Permission denied", "/x"
        ): "Error: Permission denied: /x; run again with --debug for details",
        MemoryError(): "Error: there is not enough memory (MemoryError): use a smaller --batch-size, fewer "
        "--num-images, or another --device",
        torch.OutOfMemoryError(
            "CUDA out of memory"
        ): "Error: there is not enough memory (CUDA out of memory): use a smaller "
        "--batch-size, fewer --num-images, or another --device",
        ValueError("a\nb"): "Error: internal error (ValueError: a); run again with --debug and report it",
    }
    for error, message in faults.items():

        def failing(*_, error=error):
            raise error

        monkeypatch.setattr("hf_zipit.commands.recipe.read_recipe", failing)
        code, printed, err = run("recipe", tmp_path / "recipe.yml")
        assert (code, printed) == (1, "")
        assert err.strip() == message


def test_an_interruption_is_quiet(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_zipit.commands.recipe.read_recipe", interrupted)
    assert run("recipe", "x.yml") == (130, "", "")


STOPPED = """
import os, signal, sys, time
from hf_zipit import cli
from hf_zipit.files.folders import write_atomically
from pathlib import Path

def writing(*_):
    with write_atomically(Path("out")) as folder:
        (folder / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

import hf_zipit.commands.recipe as command
command.read_recipe = writing
sys.argv = ["hf-zipit", "recipe", "x.yml"]
cli.run()
"""


def test_a_request_to_terminate_leaves_nothing_behind(tmp_path):
    done = subprocess.run([sys.executable, "-c", STOPPED], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.returncode == 143
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m hf_zipit recipe --schema | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=50)
    assert done.stderr == ""


def test_debug_shows_the_traceback():
    command = [sys.executable, "-m", "hf_zipit", "recipe", "GONE.yml", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "Error: cannot read the recipe GONE.yml" in done.stderr


def test_version_and_help(run):
    import hf_zipit

    assert run("--version")[1].strip() == hf_zipit.__version__
    assert "merge" in run("--help")[1]


def parameters(command):
    """The arguments and flags of a command, as its help shows them."""
    return typer.main.get_command(cli.app).commands[command].params


def test_help_and_documentation_name_every_method_and_calibration(run, monkeypatch):
    from hf_zipit.calibration.methods import CALIBRATIONS
    from hf_zipit.matching.methods import METHODS

    monkeypatch.setenv("COLUMNS", "250")
    shown = run("merge", "--help-all")[1]
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text(encoding="utf-8")
    for key, registry in (("method", METHODS), ("calibrate", CALIBRATIONS)):
        (text,) = [parameter.help for parameter in parameters("merge") if parameter.name == key]
        assert re.findall(r"^- ([\w-]+)", text, re.MULTILINE) == ["auto", *registry]
        for name, entry in registry.items():
            assert f"{entry.summary}.\n" in text
            assert re.search(rf"- {name}( \(control\))?: {re.escape(entry.summary)}\.", " ".join(shown.split()))
            assert f"`{name}`" in page


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_examples_and_every_flag_in_a_group(run, command):
    code, shown, _ = run(command, "--help")
    assert code == 0
    usage, *sections = shown.split("\n\n")
    assert re.match(rf"Usage: .*hf-zipit {command} \[OPTIONS\]", usage)
    titles = [section.partition(":\n")[0] for section in sections if ":\n" in section]
    assert titles[0] == "Examples"
    assert set(titles) <= {"Examples", "Arguments", *GROUPS}
    assert len(re.findall(rf"^  .*hf-zipit {command}", shown, re.MULTILINE)) == 2
    for parameter in parameters(command):
        for flag in (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ():
            assert len(re.findall(rf"(^  |, |/ ){flag}(?![\w-])", shown, re.MULTILINE)) == 1, flag
        if parameter.param_type_name == "argument":
            assert re.search(rf"^  \[?{parameter.name.upper()}", shown, re.MULTILINE), parameter.name
    everything = run(command, "--help-all")[1]
    for parameter in parameters(command):
        assert " ".join((parameter.help or "").split()) in " ".join(everything.split()), parameter.name


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_key_that_no_schema_has_is_found(kind):
    entry = {"rows": [{"unheard": 1}]} if kind in ("eval", "compare") else {"unheard": 1}
    assert undocumented({"schema": f"hf-zipit/{kind}/1", **entry}) == [
        "rows[].unheard" if "rows" in entry else "unheard"
    ]


def test_examples_of_the_help_can_be_parsed():
    group = typer.main.get_command(cli.app)
    for command, examples in EXAMPLES.items():
        for example in examples:
            name, *arguments = shlex.split(example)
            assert name == command
            group.commands[command].make_context(command, arguments)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_is_described_in_sentences_and_shows_its_default(command):
    for parameter in parameters(command):
        if parameter.name == "help":
            continue
        assert parameter.help[0].isupper(), parameter.name
        assert parameter.help.endswith("."), parameter.name
        assert not parameter.show_default or parameter.default in (None, False, ""), parameter.name
        if isinstance(parameter.default, str | int) and parameter.default not in (False, 0, ""):
            assert parameter.help.endswith(f"Default: {parameter.default}."), parameter.name


def test_every_command_that_reads_models_takes_the_same_access_flags():
    from inspect import signature

    flags = {"token", "trust_remote_code", "allow_pickle"}
    without = {"push": flags - {"token"}, "cache": flags, "recipe": flags}
    for name, command in cli.COMMANDS.items():
        assert flags - set(signature(command).parameters) == without.get(name, set()), name


def test_what_may_not_be_written_is_refused_before_any_image_is_read(run, digits, tmp_path):
    for folder, license in zip(digits, ("mit", "apache-2.0"), strict=True):
        shutil.copytree(folder, tmp_path / folder.name)
        (tmp_path / folder.name / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    models = [tmp_path / folder.name for folder in digits]
    common = ["--data", tmp_path / "no-images", "-o", tmp_path / "out"]
    code, _, err = run("merge", *models, *common)
    assert code == 1
    assert "different licenses" in err
    assert "--license" in err
    code, _, err = run("merge", *models, "--dry-run")
    assert code == 1
    assert "different licenses" in err
    assert run("merge", *models, "--dry-run", "--license", "mit")[0] == 0
    code, _, err = run("merge", *models, *common, "--license", "mit", "--format", "timm")
    assert code == 1
    assert "timm has no such architecture" in err
    code, _, err = run("merge", *models, *common, "--license", "mit")
    assert code == 1
    assert "no-images" in err  # only now the images are missed
    assert not (tmp_path / "out").exists()


def test_evaluation_data_that_cannot_be_used_cost_no_merge(run, digits, digits_data, tmp_path):
    classes = tmp_path / "other" / "cat"
    classes.mkdir(parents=True)
    PIL.Image.new("RGB", (8, 8)).save(classes / "0.png")
    for data in (tmp_path / "nowhere", tmp_path / "other"):
        code, _, error = run("merge", *digits, "--data", digits_data, "--eval-data", data, "-o", tmp_path / "never")
        assert code == 1
        assert error.startswith("Error: ")
    assert not (tmp_path / "never").exists()


def test_a_token_that_is_none_is_refused(run, digits, digits_data, tmp_path):
    code, _, error = run("merge", *digits, "--data", digits_data, "--token", "ünï", "-o", tmp_path / "never")
    assert code == 2
    assert "the access token has characters that no token has" in error

"""The command line on models of several kinds, as folders that their libraries wrote."""

import json
import logging
import re

import datasets
import numpy as np
import pytest
from PIL import Image
from timm.models import save_for_hf

from hf_zipit.transform.permute import randomise
from tests.helpers.models import tiny
from tests.helpers.wholes import NARROW, unet

CUT = ["--cut", "layer2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A classifier, a segmentation model, and images with labels and with masks."""
    place, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    classifier = tiny("resnet18")
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, "input_size": (3, 32, 32)}
    names = {"label_names": list("abcde")}
    save_for_hf(classifier, place / "classes", model_args=NARROW, safe_serialization=True, model_config=names)
    randomise(unet().eval(), 1).save_pretrained(place / "masks")
    pictures = [Image.fromarray(random.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(12)]
    masks = [Image.fromarray(random.integers(0, 2, (32, 32), dtype=np.uint8)) for _ in pictures]
    labels = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcde"))})
    kinds = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": [i % 5 for i in range(12)]}, features=labels)
    pairs = datasets.Dataset.from_dict({"image": pictures, "mask": masks}, features=kinds)
    for split in ("train", "test"):
        rows.to_parquet(str(place / "labelled" / f"{split}.parquet"))
        pairs.to_parquet(str(place / "masked" / f"{split}.parquet"))
    return place


@pytest.fixture(scope="module")
def models(place):
    return [place / "classes", place / "masks"]


@pytest.fixture
def merged(run, place, models):
    """The merge of both, made once."""
    out = place / "merged"
    if not out.exists():
        code, printed, _ = run("merge", *models, "--data", place / "labelled", *CUT, "--no-cache", "-o", out)
        assert (code, printed.strip()) == (0, str(out))
    return out


def test_each_task_is_evaluated_by_its_own_metric_beside_parents_and_ensemble(run, place, merged):
    data = ["--data", place / "labelled", "--data", place / "masked"]
    code, printed, _ = run("eval", merged, *data, "--json")
    rows = {row["model"]: row for row in json.loads(printed)["rows"]}
    assert (code, list(rows)) == (0, ["merged", "parent:classes", "parent:masks", "ensemble"])
    assert set(rows["merged"]["scores"]["masks"]) == {"mIoU", "pixel accuracy", "weighted error rate"}
    assert rows["parent:classes"]["scores"].keys() == {"classes"}
    assert rows["ensemble"]["scores"]["classes"] == rows["parent:classes"]["scores"]["classes"]
    assert rows["merged"]["flops"] < rows["ensemble"]["flops"]
    code, printed, _ = run("eval", merged, *data)
    assert re.search(r"model +classes: accuracy +masks: mIoU +masks: pixel accuracy .*FLOPs", printed)
    assert re.search(r"parent:classes +0\.\d{4} +- +- ", printed)


def test_inspect_shows_which_tensors_a_cut_hands_over(run, models, merged, caplog):
    with caplog.at_level(logging.WARNING, "hf_zipit"):
        code, printed, _ = run("inspect", models[1])
    assert code == 0
    assert "masks does not say how large its images are: it is looked at with 224 x 224 pixels" in caplog.text
    (line,) = [line for line in printed.splitlines() if "layer2.0 = " in line]
    assert line.count(" + ") == 2
    code, printed, _ = run("inspect", merged)
    assert re.search(r"masks +image-segmentation +2 +masks", printed)
    assert re.search(r"masks +act1 \(64\) \+ layer1\.1 \(8\) \+ layer2\.0 \(16\)", printed)
    found = json.loads(run("inspect", merged, "--json")[1])
    assert [len(task["reads"]) for task in found["tasks"]] == [1, 3]
    rows = json.loads(run("inspect", models[0], "--json")[1])["cuts"]
    (cut,) = [cut for cut in rows if cut["name"] == "layer2.0"]
    assert found["trunk"] == {"flops": cut["trunk_flops"], "parameters": cut["trunk_parameters"]}
    assert found["trunk"]["flops"] + found["heads"][0]["flops"] == cut["flops"]
    assert found["trunk"]["parameters"] + found["heads"][0]["parameters"] == cut["parameters"]


def test_a_plan_costs_what_the_merge_does(run, models, merged):
    code, printed, _ = run("merge", *models, *CUT, "--dry-run", "--json")
    plan, found = json.loads(printed), json.loads(run("inspect", merged, "--json")[1])
    assert code == 0
    assert (plan["flops"], plan["parameters"]) == (found["flops"], found["parameters"])
    assert plan["parents_flops"] == plan["flops"] + found["trunk"]["flops"]
    assert "are merged up to layer4.0" in run("merge", *models, "--dry-run")[1]


def test_what_does_not_work_on_several_kinds_is_refused_before_the_work(run, place, models, merged):
    data = ["--data", place / "labelled"]
    merge = ["merge", *models, *data, *CUT, "-o", place / "never"]
    refused = {
        ("--width", 1.5): "merged at its own width only",
        ("--flops-budget", 1.5): "merged at its own width only",
        ("--eval-data", place / "labelled"): "evaluate this merge with `hf-zipit eval`",
        ("--method", "mudsc-zip", "--balance", "auto", *map(str, ("--balance-data", place / "labelled"))): "accuracy",
    }
    for options, message in refused.items():
        code, _, error = run(*merge, *options)
        assert code == 2, options
        assert message in error
    assert not (place / "never").exists()
    code, _, error = run("compare", *models, *data, "-o", place / "report")
    assert (code, "compare measures classifiers" in error, (place / "report").exists()) == (2, True, False)
    code, _, error = run("merge", merged, models[0], *data, "-o", place / "never")
    assert (code, "merge its sources instead" in error) == (1, True)
    assert "one kind of output" in run("export", merged, "--format", "timm", "-o", place / "never")[2]


def test_the_balance_is_chosen_by_the_outputs_of_all_kinds(run, place, models):
    options = ["--method", "mudsc-align", "--balance", "auto", "--calibrate", "none", "--num-images", 4, "--no-cache"]
    merge = ["merge", *models, "--data", place / "labelled", *CUT, *options]
    code, printed, _ = run(*merge, "--json", "-o", place / "balanced")
    tried = json.loads(printed)["balance"]["tried"]
    assert (code, len(tried)) == (0, 9)
    assert all(error >= 0 for error in tried.values())
    assert min(tried, key=tried.get) == f"{json.loads(printed)['recipe']['balance']:g}"

"""The command line on models of several kinds, as folders that their libraries wrote."""

import json
import logging
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from timm.models import save_for_hf

import hf_zipit
from hf_zipit.merging import balance
from hf_zipit.transform.permute import randomise
from tests.helpers.models import tiny
from tests.helpers.wholes import NARROW, unet

CUT = ["--cut", "layer2"]
BALANCED = ("--method", "mudsc-zip", "--balance", "auto")


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
        assert code == 0
        assert printed.strip() == str(out)
    return out


def test_each_task_is_evaluated_by_its_own_metric_beside_parents_and_ensemble(run, place, merged):
    data = ["--data", place / "labelled", "--data", place / "masked"]
    code, printed, _ = run("eval", merged, *data, "--json")
    rows = {row["model"]: row for row in json.loads(printed)["rows"]}
    assert code == 0
    assert list(rows) == ["merged", "parent:classes", "parent:masks", "ensemble"]
    assert set(rows["merged"]["scores"]["masks"]) == {"mIoU", "pixel accuracy", "weighted error rate"}
    assert rows["parent:classes"]["scores"].keys() == {"classes"}
    assert rows["ensemble"]["scores"]["classes"] == rows["parent:classes"]["scores"]["classes"]
    assert rows["merged"]["flops"] < rows["ensemble"]["flops"]
    code, printed, _ = run("eval", merged, *data)
    assert re.search(r"model +classes: accuracy +masks: mIoU +masks: pixel accuracy .*FLOPs", printed)
    assert re.search(r"parent:classes +0\.\d{4} +- +- ", printed)


@pytest.mark.slow
def test_inspect_shows_which_tensors_a_cut_hands_over(run, models, merged, caplog):
    with caplog.at_level(logging.WARNING, "hf_zipit"):
        code, printed, _ = run("inspect", models[1])
    assert code == 0
    assert "masks does not state its input size; 224 x 224 pixels are assumed" in caplog.text
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


@pytest.mark.slow
def test_a_plan_costs_what_the_merge_does(run, models, merged):
    code, printed, _ = run("merge", *models, *CUT, "--dry-run", "--json")
    plan, found = json.loads(printed), json.loads(run("inspect", merged, "--json")[1])
    assert code == 0
    assert plan["flops"] == found["flops"]
    assert plan["parameters"] == found["parameters"]
    assert plan["parents_flops"] == plan["flops"] + found["trunk"]["flops"]
    assert "are merged up to layer4.0" in run("merge", *models, "--dry-run")[1]


def test_what_does_not_work_on_several_kinds_is_refused_before_the_work(run, place, models, merged):
    merge = ["merge", *models, "--data", place / "labelled", *CUT, "-o", place / "never"]
    refused = {
        ("--eval-data", place / "labelled"): "evaluate this merge with `hf-zipit eval`",
        (*BALANCED, "--balance-data", str(place / "labelled")): "needs classifiers only",
        ("--calibrate", "refit-joint"): "refit-joint needs classifiers only, each for one class of several; use refit",
        ("--cut", "layer9"): "No more can be merged",
        ("--flops-budget", 0.5): "these models need at least",
    }
    for options, message in refused.items():
        code, _, error = run(*merge, *options)
        assert code == 2, options
        assert message in error
    assert not (place / "never").exists()
    code, _, error = run("merge", merged, models[0], "--data", place / "labelled", "-o", place / "never")
    assert code == 1
    assert "merge its sources instead" in error
    assert "one kind of output" in run("export", merged, "--format", "timm", "-o", place / "never")[2]


@pytest.mark.parametrize("size", [("--width", 1.5), ("--width", 0.5), ("--flops-budget", 2.3)])
@pytest.mark.sample(1)
def test_widths_and_budgets_are_planned_merged_and_counted(run, place, models, size):
    """The trunk gets the width; every task still gathers the units that its own model reads."""
    out = place / "-".join(str(part) for part in size)
    options = ["--data", place / "labelled", "--no-cache", "--method", "zip", *size]
    if "--width" in size:
        options += CUT
    code, printed, error = run("merge", *models, *options, "--calibrate", "none", "-o", out, "--json")
    assert code == 0, error
    spaces = {space["name"]: space["width"] for space in json.loads(printed)["spaces"]}
    found = json.loads(run("inspect", out, "--json")[1])
    reads = [tap["units"] for task in found["tasks"] for tap in task["reads"]]
    assert set(reads) <= {8, 16, 24, 32, 64}  # the width of its own model
    plan = json.loads(run("merge", *models, *options, "--dry-run", "--json")[1])
    if "--width" in size:
        assert (plan["flops"], plan["parameters"]) == (found["flops"], found["parameters"])
        assert plan["spaces"] == spaces
        assert spaces["layer1.0.mid1"] == 8 * size[1]
    else:
        assert found["flops"] <= plan["flops"]
        assert plan["parameters"] is None
    code, printed, _ = run("eval", out, "--data", place / "labelled", "--data", place / "masked")
    assert code == 0
    assert printed.splitlines()[1].startswith("merged ")


def test_a_trunk_as_wide_as_both_models_answers_as_they_do(place, models):
    data = [torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))]
    sources = [hf_zipit.load_source(model) for model in models]
    merged = hf_zipit.merge(sources, data, width=2, cut="layer2", calibrate="none", cache=False)
    with torch.no_grad():
        answers = merged(data[0]).task_outputs
        for source in sources:
            logits = source.model.eval()(data[0])
            torch.testing.assert_close(answers[source.name].logits, logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_merges_of_several_kinds_are_compared(run, place, models, merged):
    """Without targets by the agreement with the parents, with targets by each task's own metric."""
    data = ["--data", place / "labelled", "--num-images", 8, "--no-cache"]
    wanted = ["--methods", "zip,average", "--cuts", "layer1,layer2", "--calibrate", "none", "--widths", "1,1.5"]
    code, printed, error = run("compare", *models, *data, *wanted, "-o", place / "report", "--json")
    assert code == 0, error
    rows = json.loads(printed)["rows"]
    assert [row["method"] for row in rows] == [
        *["zip"] * 4,
        *["average"] * 2,
        "parent:classes",
        "parent:masks",
        "ensemble",
    ]
    assert all(0 <= row["tasks"]["masks"] <= 1 for row in rows[:6])
    assert all(row["distance"] > 0 for row in rows[:6])
    assert rows[-1]["distance"] == 0
    assert all(row["correlation"] for row in rows[:6])
    assert rows[1]["flops"] > rows[0]["flops"]
    targets = ["--eval-data", place / "labelled", "--eval-data", place / "masked"]
    code, printed, error = run("compare", *models, *data, *wanted, *targets, "-o", place / "scored", "--json")
    assert code == 0, error
    scored = json.loads(printed)["rows"]
    assert set(scored[0]["scores"]["masks"]) == {"mIoU", "pixel accuracy", "weighted error rate"}
    first, masks = scored[0], next(row for row in scored if row["method"] == "parent:masks")
    relative = [first["tasks"][task] / scored[-1]["tasks"][task] for task in ("classes", "masks")]
    assert first["average"] == pytest.approx(sum(relative) / 2)
    assert masks["average"] == 1
    evaluated = json.loads(
        run("eval", place / "merged", *targets[:0], "--data", place / "labelled", "--data", place / "masked", "--json")[
            1
        ]
    )
    parents = {row["model"]: row for row in evaluated["rows"]}
    assert masks["scores"] == parents["parent:masks"]["scores"]
    code, printed, _ = run("compare", *models, *data, *wanted, *targets, "-o", place / "scored")
    assert code == 0
    more = [*wanted[:-4], "--calibrate", "none", "--methods", "zip,permute"]  # resumed: one method is new
    code, again, _ = run("compare", *models, *data, *more, *targets, "-o", place / "scored", "--json")
    assert code == 0
    rows = json.loads(again)["rows"]
    assert rows[0]["average"] == scored[0]["average"]
    assert rows[0]["seconds"] == scored[0]["seconds"]
    assert rows[2]["average"] > 0
    swapped = ["--eval-data", place / "labelled", "--eval-data", f"{place / 'masked'}:train"]
    code, other, _ = run("compare", *models, *data, *more, *swapped, "-o", place / "scored", "--json")
    assert code == 0
    assert (
        json.loads(other)["rows"][0]["seconds"] != scored[0]["seconds"]
    )  # other targets: nothing is taken from before
    assert "relative" in printed.splitlines()[0].split()
    assert (place / "scored" / "results.png").stat().st_size > 10000


@pytest.mark.slow
def test_the_balance_is_chosen_by_the_outputs_of_all_kinds(run, place, models, monkeypatch):
    monkeypatch.setattr(balance, "GRID", (0.2, 0.5, 0.9))
    options = ["--method", "mudsc-align", "--balance", "auto", "--calibrate", "none", "--num-images", 4, "--no-cache"]
    merge = ["merge", *models, "--data", place / "labelled", *CUT, *options]
    code, printed, _ = run(*merge, "--json", "-o", place / "balanced")
    tried = json.loads(printed)["balance"]["tried"]
    assert code == 0
    assert list(tried) == ["0.2", "0.5", "0.9"]
    assert all(error >= 0 for error in tried.values())
    assert min(tried, key=tried.get) == f"{json.loads(printed)['recipe']['balance']:g}"

"""Heads that do not predict one class of several: their scores against plain loops, and no joint prediction."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import hf_zipit
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.report import result_table
from hf_zipit.evaluation.scores import average_precision, scores_of
from hf_zipit.sources.load import load_source
from tests.helpers.models import hf_vit, tiny
from tests.helpers.models import images as pixels_of


@pytest.fixture(scope="module")
def pixels():
    return torch.cat(pixels_of(24))


@pytest.fixture(scope="module")
def one_and_many(pixels):
    parents = [tiny("resnet18", 0, num_classes=1), tiny("resnet18", 1, num_classes=3)]
    return hf_zipit.merge(parents, [pixels], tasks=["defect", "kind"], cache=False)


def test_a_merge_of_one_logit_and_three_keeps_both(one_and_many, pixels):
    out = one_and_many(pixels)
    assert {task: value.shape[1] for task, value in out.task_logits.items()} == {"defect": 1, "kind": 3}
    assert torch.equal(out.logits, torch.cat(list(out.task_logits.values()), -1))


def test_one_logit_is_scored_by_its_sign(one_and_many, pixels):
    signs = torch.arange(24) % 2
    kinds = torch.arange(24) % 3
    (row,) = hf_zipit.evaluate(one_and_many, [[(pixels, signs)], [(pixels, kinds)]])
    out = one_and_many(pixels).task_logits
    assert row.tasks["defect"] == pytest.approx(float(((out["defect"][:, 0] > 0).long() == signs).double().mean()))
    assert row.tasks["kind"] == pytest.approx(float((out["kind"].argmax(1) == kinds).double().mean()))
    assert row.joint is None
    assert row.images == {"defect": 24, "kind": 24}


def test_there_is_no_joint_loss(one_and_many, pixels):
    with pytest.raises(ValueError, match="task 'defect' does not predict one class of several"):
        one_and_many(pixels, labels=torch.zeros(24, dtype=torch.long))
    chosen = one_and_many(pixels, labels=torch.zeros(24, dtype=torch.long), tasks="kind")
    assert torch.isfinite(chosen.loss)


def test_a_joint_refit_is_refused(pixels):
    parents = [tiny("resnet18", 0, num_classes=1), tiny("resnet18", 1, num_classes=3)]
    with pytest.raises(OptionError, match="refit-joint needs classifiers only, each for one class of several"):
        hf_zipit.merge(parents, [pixels], calibrate="refit-joint", cache=False)


def test_several_labels_have_their_own_scores(pixels):
    merged = hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], [pixels], tasks=["a", "b"], cache=False)
    tags = (torch.rand(24, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    classes = torch.arange(24) % 5
    rows = hf_zipit.evaluate(
        merged, [[(pixels, tags)], [(pixels, classes)]], parents=[tiny("resnet18", 0), tiny("resnet18", 1)]
    )
    logits = merged(pixels).task_logits["a"]
    assert rows[0].scores["a"]["label accuracy"] == pytest.approx(float(((logits > 0) == (tags > 0)).double().mean()))
    right = float((merged(pixels).task_logits["b"].argmax(1) == classes).double().mean())
    assert rows[0].scores["b"] == {"accuracy": pytest.approx(right)}
    assert rows[0].joint is None
    shares = [rows[0].tasks[task] / row.tasks[task] for task, row in (("a", rows[1]), ("b", rows[2]))]
    assert rows[0].average == pytest.approx(sum(shares) / 2)
    assert "a: mAP" in result_table(rows, ["a", "b"])


def test_scores():
    outputs = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert scores_of("regression", outputs, torch.tensor([[1.0, -1.0], [1.0, 0.5]])) == {"L1": 0.75}
    assert scores_of("binary", outputs[:, 1:], torch.tensor([0, 0])) == {"accuracy": 0.5}
    unknown = torch.tensor([[1.0, float("nan")], [1.0, 1.0]])
    found = scores_of("multi-label", outputs, unknown)
    assert found["label accuracy"] == 1
    assert math.isnan(found["mAP"])  # no class is known to be absent anywhere


def test_average_precision_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).double()  # with ties
    positive = torch.rand(40, generator=generator) > 0.6
    expected = 0.0
    reached = 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        chosen = scores >= threshold
        recall = float(positive[chosen].sum() / positive.sum())
        expected += (recall - reached) * float(positive[chosen].double().mean())
        reached = recall
    assert average_precision(scores, positive) == pytest.approx(expected)
    assert functional.relu(torch.tensor(expected)) > 0


def test_what_outputs_mean_survives_a_change_of_types():
    """A merge in float16 is merged with a model in float32, so its layers are copied."""
    parents = [replace(load_source(hf_vit(seed)), problem="multi-label") for seed in (0, 1)]
    inner = hf_zipit.merge(parents, pixels_of(8), method="zip", tasks=["a", "b"], calibrate="none", cache=False)
    merged = hf_zipit.merge([inner.half(), hf_vit(2)], pixels_of(8), tasks=["a", "b", "c"], cache=False)
    assert [head.get("problem") for head in merged.config.heads] == ["multi-label", "multi-label", None]

import pytest
import torch

import hf_zipit
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.sources.load import load_source
from tests.helpers.models import images, tiny


@pytest.fixture(scope="module")
def merged():
    return hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1, num_classes=3)], images(32), tasks=["a", "b"])


def labelled(count, classes, seed):
    pixels = torch.cat(images(count, seed=seed))
    return [(pixels, torch.arange(count) % classes)]


def test_rows_equal_a_plain_computation(merged):
    """Two data sets by class number; the joint prediction is the argmax of each task's softmax."""
    data = [labelled(20, 5, 3), labelled(12, 3, 4)]
    parents = [load_source(tiny("resnet18", 0)), load_source(tiny("resnet18", 1, num_classes=3))]
    rows = {row.model: row for row in evaluate(merged, data, parents=parents)}
    assert list(rows) == ["merged", "parent:a", "parent:b", "ensemble"]

    with torch.no_grad():
        outs = [merged(x).task_logits for ((x, _),) in data]
        own = [[p.model(x) for p in parents] for ((x, _),) in data]
    accuracy = [(outs[k][t].argmax(1) == data[k][0][1]).double().mean().item() for k, t in enumerate("ab")]
    assert rows["merged"].tasks == pytest.approx({"a": accuracy[0], "b": accuracy[1]})
    assert rows["merged"].average == pytest.approx(sum(accuracy) / 2)

    def joint(logits):
        hits = 0
        for k, offset in enumerate((0, 5)):
            best = torch.cat([x.softmax(1) for x in logits[k]], 1).argmax(1)
            hits += (best == data[k][0][1] + offset).sum().item()
        return hits / 32

    assert rows["merged"].joint == pytest.approx(joint([list(o.values()) for o in outs]))
    assert rows["ensemble"].joint == pytest.approx(joint(own))
    assert rows["parent:b"].tasks.keys() == {"b"}
    alone = (own[1][1].argmax(1) == data[1][0][1]).sum().item() / 32
    assert rows["parent:b"].joint == pytest.approx(alone)
    assert rows["ensemble"].flops == rows["parent:a"].flops + rows["parent:b"].flops
    assert rows["merged"].parameters == sum(p.numel() for p in merged.parameters())


@pytest.mark.slow
def test_labels_are_matched_by_name(digits, digits_data):
    merged = hf_zipit.merge(digits, digits_data, num_images=200, tasks=["low", "high"])
    rows = evaluate(merged, digits_data, parents=[load_source(d) for d in digits])
    assert rows[1].tasks["low"] > 0.98
    assert rows[2].tasks["high"] > 0.98
    assert rows[3].joint > 0.9
    assert rows[0].joint > 0.4


def test_data_that_does_not_fit_is_refused(merged, digits, digits_data):
    with pytest.raises(DataError, match="has no label column"):
        evaluate(merged, images(8))
    with pytest.raises(OptionError, match="1 parents for 2 tasks"):
        evaluate(merged, labelled(8, 2, 0), parents=[load_source(digits[0])])
    with pytest.raises(DataError, match="task 'a': no image has a label that belongs to the task"):
        evaluate(merged, [(torch.zeros(2, 3, 32, 32), torch.tensor([8, 9]))])
    other = hf_zipit.merge(digits, digits_data, num_images=50, calibrate="none")
    other.config.heads[0]["id2label"] = {i: f"bird {i}" for i in range(5)}
    with pytest.raises(
        DataError, match=r"task 'digits-0-4': the data set has none of the classes of the task: its classes are 0, 1"
    ):
        evaluate(other, digits_data)


def test_labels_without_names_are_taken_as_numbers_with_a_warning(caplog):
    merged = hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], images(8), tasks=["a", "b"])
    batches = [(torch.randn(6, 3, 32, 32), torch.arange(6) % 5)]
    hf_zipit.evaluate(merged, batches)
    assert "task 'a': the data set has no class names; the labels are taken as class numbers" in caplog.text

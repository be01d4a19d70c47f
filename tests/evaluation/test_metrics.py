"""Metrics against slow, obvious oracles; merges of several kinds of tasks evaluated each by its own."""

import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import hf_zipit
from hf_zipit.data.targets import open_targets
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.evaluate import evaluate_tasks
from hf_zipit.evaluation.metrics import METRICS, Accuracy, MeanIoU, constant_estimator, scaled_performance
from tests.helpers.models import images, tiny
from tests.helpers.wholes import pyramid, whole

RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 4, 5, 7, generator=RANDOM)
LABELS = torch.randint(0, 4, (6, 5, 7), generator=RANDOM)
LABELS[0, :2] = 255


def in_batches(metric, output, target):
    for pair in zip(output.split(4), target.split(4), strict=True):
        metric.update(*pair)
    return metric.value()


def test_mean_iou_is_that_of_every_class_counted_by_hand():
    found, shares = LOGITS.argmax(1), []
    for label in range(4):
        both = either = 0
        for answer, truth in zip(found.flatten().tolist(), LABELS.flatten().tolist(), strict=True):
            if truth != 255:
                both += answer == truth == label
                either += label in (answer, truth)
        shares.append(both / either)
    assert in_batches(MeanIoU(), LOGITS, LABELS) == pytest.approx(sum(shares) / 4)
    absent = LABELS.where(LABELS != 3, 255)
    assert in_batches(MeanIoU(), LOGITS - 99 * torch.tensor([0, 0, 0, 1]).view(4, 1, 1), absent) > 0.1


def test_in_the_weighted_error_rate_every_class_counts_the_same():
    found, rates = LOGITS.argmax(1), []
    for label in range(4):
        mine = [a for a, t in zip(found.flatten().tolist(), LABELS.flatten().tolist(), strict=True) if t == label]
        rates.append(sum(answer != label for answer in mine) / len(mine))
    assert in_batches(METRICS["weighted error rate"](), LOGITS, LABELS) == pytest.approx(sum(rates) / 4)
    absent = LABELS.where(LABELS != 3, 255)
    assert in_batches(METRICS["weighted error rate"](), LOGITS, absent) == pytest.approx(sum(rates[:3]) / 3)


def test_accuracy_counts_what_is_labelled():
    hits = [a == t for a, t in zip(LOGITS.argmax(1).flatten(), LABELS.flatten(), strict=True) if t != 255]
    assert in_batches(Accuracy(), LOGITS, LABELS) == pytest.approx(float(sum(hits)) / len(hits))
    assert in_batches(Accuracy(), LOGITS[..., 0, 0], LOGITS[..., 0, 0].argmax(1)) == 1.0
    assert in_batches(Accuracy(), LOGITS[:, :1], (LOGITS[:, 0] > 0).long()) == 1.0
    coarse = torch.nn.functional.interpolate(LOGITS, scale_factor=2, mode="nearest")
    assert in_batches(Accuracy(), coarse, LABELS) > 0.1
    assert math.isnan(Accuracy().value())


def test_losses_are_means_over_what_counts():
    target = torch.randn(6, 4, 5, 7, generator=RANDOM)
    target[1, :, 2] = float("nan")
    known = target.isfinite()
    expected = (LOGITS - target)[known].abs().mean()
    assert in_batches(METRICS["L1"](), LOGITS, target) == pytest.approx(float(expected))
    entropy = torch.nn.functional.cross_entropy(LOGITS, LABELS, ignore_index=255)
    assert in_batches(METRICS["cross-entropy"](), LOGITS, LABELS) == pytest.approx(float(entropy), rel=1e-5)


def test_scaled_performance_with_both_constant_estimators():
    targets = torch.rand(10, 1, 3, 3, generator=RANDOM)
    assert torch.allclose(constant_estimator(targets.split(4)).float(), targets.mean(0))
    assert torch.allclose(constant_estimator(targets.split(4), published=True).float(), targets[8:].sum(0) / 10)
    assert scaled_performance(0.1, alone=0.1, constant=0.4) == 1
    assert scaled_performance(0.4, alone=0.1, constant=0.4) == 0
    assert scaled_performance(0.7, alone=0.1, constant=0.4) == pytest.approx(-1)
    assert scaled_performance(0.8, alone=0.2, constant=0.6) == pytest.approx(-0.5)
    assert math.isnan(scaled_performance(0.1, alone=0.5, constant=0.4))
    assert math.isnan(scaled_performance(0.1, alone=0.4, constant=0.4))


def test_each_task_is_evaluated_by_its_own_metric_beside_parents_and_ensemble():
    maps = pyramid()
    sources = [tiny("resnet18"), whole(maps, "image-segmentation")]
    merged = hf_zipit.merge(sources, images(16), method="average", tasks=["classes", "maps"], cache=False)
    pixels = torch.cat(images(16))
    with torch.no_grad():
        mask = maps(pixels).argmax(1)
    data = [[(pixels, torch.arange(16) % 5)], list(zip(pixels.split(8), mask.split(8), strict=True))]
    parents = [hf_zipit.load_source(source) for source in sources]
    rows = {row.model: row for row in evaluate_tasks(merged, data, parents=parents)}
    assert list(rows) == ["merged", "parent:classes", "parent:maps", "ensemble"]
    perfect = {"mIoU": 1.0, "pixel accuracy": 1.0, "weighted error rate": 0.0}
    assert rows["parent:maps"].scores == {"maps": perfect}
    assert rows["ensemble"].scores == {**rows["parent:classes"].scores, **rows["parent:maps"].scores}
    assert rows["merged"].scores["maps"]["mIoU"] < 1
    assert rows["parent:maps"].flops < rows["merged"].flops < rows["ensemble"].flops
    chosen = evaluate_tasks(merged, data, metrics={"maps": ["cross-entropy"]})
    assert list(chosen[0].scores["maps"]) == ["cross-entropy"]
    with pytest.raises(OptionError, match="task 'maps': unknown metric 'luck'"):
        evaluate_tasks(merged, data, metrics={"maps": ["luck"]})
    with pytest.raises(DataError, match=r"must be batches of \(pixels, targets\)"):
        evaluate_tasks(merged, [data[0], [pixels]])


def test_masks_come_from_the_column_beside_the_images():
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    mask = np.zeros((4, 4), np.uint8)
    mask[:2] = 3
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [picture], "mask": [Image.fromarray(mask)]}, features=features)

    def transform(_):
        return torch.zeros(3, 8, 8)

    ((pixels, target),) = open_targets(rows, "image-segmentation", transform)
    assert pixels.shape == (1, 3, 8, 8)
    assert torch.equal(target, torch.tensor([[3] * 8] * 4 + [[0] * 8] * 4)[None])
    with pytest.raises(DataError, match="needs an image column and one column of targets"):
        list(open_targets(rows.remove_columns("mask"), "image-segmentation", transform))
    with pytest.raises(OptionError, match="there are 1 images, and num_images is 2"):
        open_targets(rows, "image-segmentation", transform, num_images=2)


def test_targets_are_not_mistaken_for_images():
    columns = {"mask": Image.new("L", (8, 8), 3), "photo": Image.new("RGB", (8, 8))}
    features = datasets.Features(dict.fromkeys(columns, datasets.Image()))
    rows = datasets.Dataset.from_dict({name: [image] for name, image in columns.items()}, features=features)

    def transform(image):
        return torch.from_numpy(np.array(image)).movedim(-1, 0).float()

    with pytest.raises(DataError, match="call the images 'image', or name the targets with label_column"):
        open_targets(rows, "image-segmentation", transform)
    ((pixels, target),) = open_targets(rows, "image-segmentation", transform, label_column="mask")
    assert pixels.unique().tolist() == [0]
    assert target.unique().tolist() == [3]


def test_options_of_targets_are_checked_as_those_of_images():
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    picture = Image.new("RGB", (8, 8))
    rows = datasets.Dataset.from_dict({"image": [picture], "mask": [picture]}, features=features)
    with pytest.raises(OptionError, match="num_images is 0: it must be at least 1"):
        open_targets(rows, "image-segmentation", lambda _: torch.zeros(3, 8, 8), num_images=0)
    with pytest.raises(DataError, match="the models read 6 channels, which no image has"):
        open_targets(rows, "image-segmentation", lambda _: torch.zeros(6, 8, 8), channels=6)


def test_masks_that_count_from_one():
    ids = Image.fromarray(np.array([[0, 1], [3, 255]], np.uint8))
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2))], "mask": [ids]}, features=features)
    ((_, target),) = open_targets(rows, "image-segmentation", lambda _: torch.zeros(3, 2, 2), reduce_labels=True)
    assert target.tolist() == [[[255, 0], [2, 255]]]


def test_classes_that_the_model_does_not_have_are_refused():
    merged = hf_zipit.merge(
        [tiny("resnet18", 0), whole(pyramid(), "image-segmentation")], images(8), tasks=["a", "maps"]
    )
    pixels = torch.randn(2, 3, 32, 32)
    data = [[(pixels, torch.zeros(2, dtype=torch.long))], [(pixels, torch.full((2, 32, 32), 200))]]
    with pytest.raises(DataError, match="task 'maps': the targets hold the class 200, and the model has"):
        evaluate_tasks(merged, data)


def test_a_mask_in_colours_is_refused():
    picture = Image.new("RGB", (8, 8))
    coloured = Image.new("RGB", (8, 8), (3, 0, 0))
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [picture], "mask": [coloured]}, features=features)
    targets = open_targets(rows, "image-segmentation", lambda _: torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match="image 0 cannot be read: it has colours; one value per pixel is needed"):
        list(targets)


def test_class_255_of_images_counts_and_pixels_labelled_255_do_not():
    outputs = torch.eye(300)[[255, 3, 4]]
    metric = METRICS["accuracy"]()
    metric.update(outputs, torch.tensor([255, 255, 4]))
    assert metric.value() == pytest.approx(2 / 3)
    dense = METRICS["accuracy"]()
    dense.update(torch.eye(2)[None, :, :, None], torch.tensor([[[255], [1]]]))
    assert dense.value() == 1


def test_masks_of_0_and_255_are_refused():
    merged = hf_zipit.merge([tiny("resnet18", 0), whole(pyramid(), "image-segmentation")], images(8), tasks=["a", "m"])
    pixels = torch.randn(2, 3, 32, 32)
    mask = 255 * (torch.arange(2 * 32 * 32).reshape(2, 32, 32) % 2)
    data = [[(pixels, torch.zeros(2, dtype=torch.long))], [(pixels, mask)]]
    with pytest.raises(DataError, match="task 'm': its masks hold nothing but 0 and 255, and 255 is left out"):
        evaluate_tasks(merged, data)


@pytest.mark.parametrize(("problem", "metric"), [("multi-label", "label accuracy"), ("regression", "L1")])
def test_a_classifier_of_another_kind_beside_a_segmenter(problem, metric):
    classifier = replace(hf_zipit.load_source(tiny("resnet18", 0)), problem=problem)
    sources = [classifier, whole(pyramid(), "image-segmentation")]
    merged = hf_zipit.merge(sources, images(8), tasks=["a", "m"], cache=False)
    pixels = torch.cat(images(5))
    truth = (torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    data = [[(pixels, truth)], [(pixels, torch.ones(5, 32, 32, dtype=torch.long))]]
    (row,) = evaluate_tasks(merged, data)
    with torch.no_grad():
        logits = merged(pixels).task_outputs["a"].logits
    expected = {"label accuracy": ((logits > 0) == (truth > 0)).double().mean(), "L1": (logits - truth).abs().mean()}
    assert row.scores["a"] == {metric: pytest.approx(float(expected[metric]), rel=1e-4)}

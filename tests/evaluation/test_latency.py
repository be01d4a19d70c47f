"""The time of a merge beside its parents."""

import time

import pytest
import torch

import hf_zipit
from hf_zipit.evaluation.latency import BATCHES, latencies, with_latency
from hf_zipit.evaluation.report import result_table
from hf_zipit.evaluation.results import Result
from hf_zipit.sources.load import load_source
from tests.helpers.models import images, tiny


def test_models_take_turns_and_the_median_counts():
    turns = []

    def model(name, seconds):
        def run(pixels):
            turns.append(name)
            time.sleep(seconds if len(turns) != 5 else 0.5)  # once it is interrupted

        return run

    found = latencies({"fast": model("fast", 0.001), "slow": model("slow", 0.02)}, torch.zeros(1, 3, 2, 2), rounds=3)
    assert turns == ["fast", "slow"] * 4
    assert found["fast"] < 0.02 <= found["slow"] < 0.4


def test_every_row_has_its_latency_and_the_ensemble_that_of_all_parents():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(models, images(8), method="zip", calibrate="none", tasks=["a", "b"], cache=False)
    rows = [Result(name, 1, 1) for name in ("merged", "parent:a", "parent:b", "ensemble")]
    found = with_latency(rows, merged, [load_source(model) for model in models], (3, 32, 32), "cpu")
    one, first, second, both = (row.latency for row in found)
    assert list(one) == [str(batch) for batch in BATCHES]
    for batch in one:
        assert one[batch] > 0
        assert both[batch] == pytest.approx(first[batch] + second[batch], abs=0.002)
    text = result_table(found, ["a", "b"])
    assert "ms, batch 1 " in text
    assert "ms, batch 32" in text
    assert "ms, batch" not in result_table(rows, ["a", "b"])


def test_models_in_double_precision_are_timed_too():
    models = [tiny("cifar_resnet20", seed).double() for seed in (0, 1)]
    merged = hf_zipit.merge(models, method="average", calibrate="none", tasks=["a", "b"], cache=False)
    [row] = with_latency([Result("merged", 1, 1)], merged, [], (3, 32, 32), "cpu")
    assert row.latency["32"] > 0


def test_the_option_measures(digits, digits_data, tmp_path):
    merged = hf_zipit.merge(digits, digits_data, method="average", calibrate="none", num_images=20, verdict=False)
    rows = hf_zipit.evaluate(merged, digits_data, parents=digits, num_images=20, latency=True)
    assert all(set(row.latency) == {"1", "32"} for row in rows)
    assert all("latency" in row.to_dict() for row in rows)
    assert "latency" not in hf_zipit.evaluate(merged, digits_data, num_images=20)[0].to_dict()

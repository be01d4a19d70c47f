"""One `Merger`, many merges: what they share is right for each, and what it cannot vary is refused."""

import pytest
import torch

import hf_zipit
from hf_zipit.comparison.grid import Grid
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from tests.helpers.models import images, tiny

TASKS = ["a", "b"]
WAYS = [
    {"method": "zip"},
    {"method": "zip", "cut": "layer1"},
    {"method": "zip", "alpha": 0.5},
    {"method": "zip", "compat": True},
    {"method": "zip", "width": 1.5, "calibrate": "refit-heads"},
    {"method": "zip", "flops_budget": 1.2},
    {"method": "mudsc-align", "balance": 0.3},
    {"method": "average", "calibrate": "none"},
]


def pair():
    return [tiny("cifar_resnet20", seed) for seed in (0, 1)]


def test_merges_of_one_merger_are_those_made_alone():
    merger = Merger(pair(), images(16), tasks=TASKS, cache=False)
    for way in [*WAYS, *reversed(WAYS)]:
        alone = hf_zipit.merge(pair(), images(16), tasks=TASKS, cache=False, **way).state_dict()
        found = merger.merge(**way).state_dict()
        assert all(torch.equal(value, alone[name]) for name, value in found.items()), way


def test_options_that_a_merge_cannot_vary_are_refused():
    merger = Merger(pair(), images(16), tasks=TASKS, cache=False)
    for name, value in (("seed", 9), ("num_images", 3), ("tasks", ["x", "y"]), ("device", "cpu"), ("data", "d")):
        with pytest.raises(OptionError, match=f"{name} is an option of all merges of a Merger"):
            merger.merge(**{name: value})
    with pytest.raises(OptionError, match="give the models and the images to Merger itself"):
        Merger(pair(), recipe=Recipe(data=["/nowhere"]))
    with pytest.raises(OptionError, match=r"use hf_zipit\.merge, which chooses one"):
        merger.merge(method="mudsc-zip", balance="auto")
    with pytest.raises(OptionError, match="cut is not an option of a grid"):
        Grid(["zip"], options={"cut": "layer2"}).recipes(merger)


def test_an_automatic_balance_is_for_the_methods_that_have_one():
    merger = Merger(pair(), images(16), tasks=TASKS, cache=False, method="mudsc-zip", balance="auto")
    found = Grid(["zip", "mudsc-zip"]).recipes(merger)
    assert [(recipe.method, recipe.balance) for recipe in found] == [("zip", 0.5), ("mudsc-zip", "auto")]


def test_a_cut_merge_is_merged_again_within_a_budget_at_its_cut():
    inner = hf_zipit.merge(pair(), images(16), cut="layer2", calibrate="none", tasks=TASKS)
    merged = hf_zipit.merge([inner, tiny("cifar_resnet20", 2)], images(16), flops_budget=3.0, calibrate="none")
    assert merged.config.cut == "layer2"


def test_keywords_that_an_evaluation_does_not_read_are_refused():
    merged = hf_zipit.merge(pair(), images(16), method="average", calibrate="none", tasks=TASKS)
    labelled = [(images(8)[0], torch.arange(8) % 5)]
    with pytest.raises(OptionError, match="metrics are for tasks with outputs of different kinds"):
        evaluate(merged, labelled, metrics={"a": ["accuracy"]})
    with pytest.raises(OptionError, match="batch_size is 0: it must be at least 1"):
        evaluate(merged, labelled, batch_size=0)


def test_an_evaluation_takes_parents_as_a_merge_does(digits, digits_data):
    merged = hf_zipit.merge(digits, method="average", calibrate="none")
    rows = evaluate(merged, str(digits_data), parents=[str(digits[0]), digits[1]], num_images=40)
    assert [row.model for row in rows] == ["merged", "parent:digits-0-4", "parent:digits-5-9", "ensemble"]

"""The balance of weights and activations, chosen by trying."""

import logging

import pytest
import torch
import yaml

import hf_zipit
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.fidelity import distance
from hf_zipit.merging import balance
from hf_zipit.merging.balance import merge_balanced
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from tests.helpers.models import images, tiny

TASKS = ["a", "b"]
GRID = balance.GRID


@pytest.fixture(autouse=True)
def few_balances(monkeypatch):
    """Fewer than by default, to be quick."""
    monkeypatch.setattr(balance, "GRID", (0.2, 0.5, 0.9))


def test_tenths_are_tried_by_default():
    assert pytest.approx([i / 10 for i in range(1, 10)]) == GRID


def pair():
    return [tiny("cifar_resnet20", seed) for seed in (0, 1)]


def test_the_merge_nearest_to_its_parents_is_taken(caplog):
    caplog.set_level(logging.INFO, logger="hf_zipit")
    merger = Merger(pair(), images(32), tasks=TASKS, cache=False)
    merged, options = merge_balanced(merger, Recipe(method="mudsc-align", cut="layer2"))
    errors = {}
    for value in balance.GRID:
        one = merger.merge(method="mudsc-align", balance=value, cut="layer2")
        errors[value] = sum(d.error for d in distance(one, merger.parents.sources, merger.passes).values()) / 2
        if value == options.balance:
            expected = one
    assert options.balance == min(errors, key=errors.get)
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in merged.state_dict().items())
    record = merged.config.zipit["balance"]
    assert record["by"] == "error"
    assert record["tried"] == {f"{k:g}": pytest.approx(v) for k, v in errors.items()}
    assert merged.config.zipit["recipe"]["balance"] == options.balance
    assert f"balance {options.balance:g} chosen by error" in caplog.text


def test_the_most_accurate_merge_on_labelled_images_is_taken():
    data = [(torch.cat(images(40, seed=3)), torch.arange(40) % 5)]
    merged = hf_zipit.merge(
        pair(), images(32), method="mudsc-zip", balance="auto", balance_data=data, tasks=TASKS, cache=False
    )
    record = merged.config.zipit["balance"]
    assert record["by"] == "accuracy"
    (row,) = hf_zipit.evaluate(merged, data)
    assert row.average == pytest.approx(max(record["tried"].values()))
    assert record["tried"][f"{merged.config.zipit['recipe']['balance']:g}"] == pytest.approx(row.average)


def test_what_cannot_be_chosen_is_refused():
    for method in ("zip", "auto"):
        with pytest.raises(OptionError, match=f"method '{method}' has no balance; methods with one: mudsc-align"):
            hf_zipit.merge(pair(), images(32), method=method, balance="auto", cache=False)
    with pytest.raises(OptionError, match=r"balance_data needs balance 'auto', but balance is 0\.5"):
        hf_zipit.merge(pair(), images(32), method="mudsc-zip", balance_data=images(8), cache=False)
    with pytest.raises(DataError, match="has no label column"):
        hf_zipit.merge(pair(), images(32), method="mudsc-zip", balance="auto", balance_data=images(8), cache=False)


@pytest.mark.slow
def test_the_commands_choose_and_the_recipe_makes_the_same_again(run, digits, digits_data, tmp_path):
    options = ["--data", digits_data, "--num-images", 32, "--cut", "layer1", "--method", "mudsc-align"]
    code, _, err = run("merge", *digits, *options, "--balance", "auto", "-o", tmp_path / "out")
    assert code == 0, err
    recipe = yaml.safe_load((tmp_path / "out" / "zipit_config.yml").read_text())
    assert recipe["balance"] in balance.GRID
    code, _, err = run("merge", *digits, *options, "--balance", "much", "-o", tmp_path / "other")
    assert code == 2
    assert "balance" in err
    common = ["--data", digits_data, "--num-images", 32, "--eval-images", 50, "--methods", "mudsc-align,zip"]
    code, printed, _ = run("compare", *digits, *common, "--cuts", "layer1", "--balance", "auto", "-o", tmp_path / "r")
    assert code == 0
    assert [line.split()[0] for line in printed.splitlines()[1:3]] == ["mudsc-align", "zip"]
    assert run("compare", *digits, *common, "--balance", "much", "-o", tmp_path / "r")[0] == 2

"""Held-out images are drawn at random: neither by their place in the data set nor by how the images are divided."""

import pytest
import torch

import hf_zipit
from hf_zipit.calibration.refit import refit as sweep
from hf_zipit.calibration.refit.held_out import Draw
from tests.helpers.models import images, tiny


def held(lengths, seed=0):
    """The numbers of the held-out images of every data set."""
    draw = Draw(lengths, seed)
    found = []
    for task, length in enumerate(lengths):
        numbers = torch.arange(length)
        found.append(numbers[draw.held(torch.full((length,), task), numbers)].tolist())
    return found


@pytest.mark.parametrize(("length", "count"), [(1, 1), (2, 1), (9, 1), (10, 1), (11, 2), (500, 50), (501, 51)])
def test_a_tenth_is_held_out_and_of_two_images_one_is_fitted(length, count):
    assert len(held([length])[0]) == count


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_of_classes_that_take_turns_all_are_held_out(classes):
    assert {number % classes for number in held([500])[0]} == set(range(classes))


def test_of_classes_one_after_the_other_about_a_tenth_of_each_is_held_out():
    counts = torch.tensor(held([2000])[0]).div(200, rounding_mode="floor").bincount(minlength=10)
    assert counts.min() > 8
    assert counts.max() < 36


def test_the_seed_draws():
    assert held([100], 1) == held([100], 1)
    assert held([100], 1) != held([100], 2)


def test_data_sets_of_one_length_are_drawn_apart():
    first, second = held([200, 200])
    assert first != second


@pytest.mark.parametrize("every", [2, 3])
def test_blocks_that_are_read_hold_their_share_of_held_out_images_and_are_drawn(every):
    draw, numbers = Draw([600], 0), torch.arange(600)
    task = torch.zeros_like(numbers)
    read, out = draw.read(task, numbers, every), draw.held(task, numbers)
    assert read.sum() == 600 // every
    assert (read & out).sum() == 60 // every
    assert {number % 5 for number in numbers[read & out].tolist()} == set(range(5))
    assert read[:300].sum() != 300 // every


def test_images_of_both_data_sets_are_found_in_any_order():
    draw = Draw([7, 30], 3)
    task, number = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([29, 6, 0, 0, 13])
    together = draw.held(task, number)
    one_by_one = [draw.held(t[None], n[None])[0] for t, n in zip(task, number, strict=True)]
    assert together.tolist() == [bool(value) for value in one_by_one]


def test_the_seed_of_the_recipe_draws_what_a_refit_holds_out(monkeypatch):
    seeds = []
    monkeypatch.setattr(sweep, "Draw", lambda lengths, seed: seeds.append(seed) or Draw(lengths, seed))
    sources = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    hf_zipit.merge(sources, images(20), calibrate="refit-heads", cut="layer2", seed=5, cache=False)
    assert seeds == [5]

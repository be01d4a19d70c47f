"""Which images a merge reads and which it holds out: spread over the data set, disjoint, the same again."""

import pytest
import torch

from hf_zipit.data.draw import FEWEST, HELD_OUT, USEFUL, Sample, shares
from hf_zipit.data.images import open_all, open_images
from hf_zipit.errors import OptionError


@pytest.mark.parametrize("length", [FEWEST, 101, 199, 500, 1200, 1499, 1500, 50_000])
@pytest.mark.parametrize("count", [None, 100, 1000, "all"])
def test_images_are_read_or_held_out_and_the_number_that_is_recorded_draws_the_same(length, count):
    count = min(count, length) if isinstance(count, int) else count
    first = Sample(None if count == "all" else count, USEFUL if count is None else None, held_out=True, seed=3)
    read, held = first.rows(length, "d")
    assert not set(read) & set(held)
    assert read == sorted(read)
    assert held == sorted(held)
    assert 0 <= min(read + held) <= max(read + held) < length
    assert min(len(held), HELD_OUT) == len(held) >= length // 5 or len(held) == HELD_OUT
    assert len(read) <= (count if isinstance(count, int) else length)
    assert Sample(len(read), held_out=True, seed=3).rows(length, "d") == (read, held)
    assert Sample(len(read), held_out=True, seed=4).rows(length, "d") != (read, held)


def test_few_images_are_all_read():
    assert shares(FEWEST - 1, FEWEST - 1, held_out=True) == (FEWEST - 1, 0)
    assert shares(1000, 1000, held_out=False) == (1000, 0)


def test_a_data_set_in_the_order_of_its_classes_gives_images_of_all():
    classes = [number // 100 for number in range(10_000)]
    read, held = Sample(100, held_out=True).rows(len(classes), "sorted")
    assert len({classes[number] for number in read}) > 75  # 63 of 100 if all were drawn alike
    assert len({classes[number] for number in held}) == 100
    assert max(sum(classes[number] == c for number in held) for c in range(100)) <= 8


def test_a_data_set_given_twice_has_one_number_of_images():
    data = [torch.rand(50, 3, 2, 2) for _ in range(4)]
    with pytest.raises(OptionError, match="given twice: give one number"):
        open_all([data, data], 2, None, num_images=[50, 100], held_out=True)
    same = open_all([data, data], 2, None, num_images=100, held_out=True)
    mine = [{float(images[i].sum()) for i in range(len(images))} for images in (*same, *(part.held for part in same))]
    assert mine[0] == mine[1]
    assert not mine[0] & mine[3]


def test_lists_of_pixels_are_spread_and_iterables_are_read_as_far_as_needed():
    pixels = torch.arange(3000.0)[:, None, None, None].expand(-1, 3, 2, 2)
    whole = open_images(pixels, None, num_images=100, held_out=True)
    assert len(whole) == 100
    assert whole[99].flatten()[0] > 2000
    assert len(whole.held) == HELD_OUT

    seen = []

    def batches():
        for batch in pixels.split(50):
            seen.append(len(batch))
            yield batch

    part = open_images(batches(), None, num_images=100, held_out=True)
    assert sum(seen) == 100 + HELD_OUT
    assert (len(part), len(part.held)) == (100, HELD_OUT)
    values = {float(images[i].flatten()[0]) for images in (part, part.held) for i in range(len(images))}
    assert values == set(range(600))

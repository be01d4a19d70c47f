"""Images that are kept in memory."""

import torch

from hf_zipit.data.batches import Passes, remembered, suited_batch
from hf_zipit.data.dataset import Images
from hf_zipit.data.images import open_images


def counted(count, read):
    return Images(lambda i: read.append(i) or torch.full((3, 4, 4), float(i)), count, "x", lambda: "y")


def test_a_model_that_changes_its_input_changes_no_image():
    [part] = remembered([counted(3, [])])
    part[1].zero_()
    assert part[1].unique().tolist() == [1.0]


def test_all_data_sets_and_what_is_held_out_share_the_limit():
    read = []
    sets = [counted(2, read), counted(2, read)]
    sets[0].held = counted(1, read)
    bytes_ = 5 * 3 * 4 * 4 * 4
    for limit, times in ((bytes_, 1), (bytes_ - 1, 2)):
        kept = remembered(sets, limit)
        read.clear()
        for _ in range(2):
            assert [float(one[1].mean()) for one in kept] == [1.0, 1.0]
            assert float(kept[0].held[0].mean()) == 0.0
        assert len(read) == 3 * times


def test_batches_of_small_images_are_larger():
    assert suited_batch((3, 224, 224)) == suited_batch((3, 512, 512)) == 32
    assert suited_batch((1, 112, 112)) == 128
    images = open_images([torch.zeros(300, 3, 32, 32)], None)
    assert [len(pixels) for pixels, _ in Passes([images])("x")] == [256, 44]
    assert [len(pixels) for pixels, _ in Passes([images], 150)("x")] == [150, 150]

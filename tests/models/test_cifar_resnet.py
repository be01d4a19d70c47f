import re

import pytest
import timm
import torch

import hf_zipit
from hf_zipit.saving.load import load_merged
from tests.helpers.models import images


def resnet18(width=1):
    return timm.create_model("cifar_resnet20", depth=18, stages=4, width=width, num_classes=10).eval()


def test_with_four_stages_it_is_the_resnet_18_of_papers():
    model = resnet18(width=4)
    assert sum(value.numel() for value in model.parameters()) == 11_173_962
    assert [info["num_chs"] for info in model.feature_info] == [64, 64, 128, 256, 512]
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": 21}, "depth is 21: a CIFAR ResNet of 3 stages has 6 n + 2 layers (8, 14, 20, ...)"),
        ({"depth": 20, "stages": 4}, "depth is 20: a CIFAR ResNet of 4 stages has 8 n + 2 layers (10, 18, 26, ...)"),
        ({"stages": 5}, "stages is 5: a CIFAR ResNet has 3 or 4"),
    ],
)
def test_what_is_no_such_network_is_refused(given, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        timm.create_model("cifar_resnet20", **given)


def test_a_merge_of_two_is_saved_and_loaded(tmp_path):
    merged = hf_zipit.merge([resnet18(), resnet18()], images(16), method="zip", calibrate="refit", verdict=False)
    merged.save_pretrained(tmp_path)
    pixels = images(4)[0]
    for task, logits in load_merged(tmp_path)(pixels).task_logits.items():
        torch.testing.assert_close(logits, merged(pixels).task_logits[task])

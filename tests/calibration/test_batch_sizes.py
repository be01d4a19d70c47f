"""Every image weighs the same: a merge does not depend on how its images are divided into batches or processes."""

import pytest
import torch
from torch import nn

import hf_zipit
from hf_zipit.calibration.batchnorm import renew_norms
from hf_zipit.data.batches import GROUP, Passes, group_sizes
from hf_zipit.data.images import open_images
from hf_zipit.errors import DataError
from hf_zipit.merging.merger import Merger
from tests.helpers.models import images, tiny


class Norms(nn.Module):
    """A batch norm behind another."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Flatten()
        )

    def forward(self, pixels):
        return self.layers(pixels)


def passes(count, batch_size=32):
    pixels = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Passes([open_images([pixels], None)], batch_size, "cpu"), pixels


@pytest.mark.parametrize("count", [2, 33, GROUP])
def test_norms_are_those_of_one_pass_over_all_images(count):
    found = Norms().eval()
    renew_norms(found, passes(count)[0])
    plain = Norms().train()
    plain.load_state_dict(found.state_dict())
    for norm in plain.layers[1], plain.layers[4]:
        norm.reset_running_stats()
        norm.momentum = None
    plain(passes(count)[1])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_the_mean_of_the_first_norm_is_over_all_images():
    model = Norms().eval()
    source, pixels = passes(2 * GROUP + 2)
    renew_norms(model, source)
    read = model.layers[0](pixels)
    torch.testing.assert_close(model.layers[1].running_mean, read.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.layers[1].running_var, read.movedim(1, 0).flatten(1).var(1), rtol=1e-4, atol=1e-6)


def test_no_hook_and_no_training_mode_is_left():
    model = Norms().eval()
    renew_norms(model, passes(4)[0])
    assert not any(module.training or module._forward_pre_hooks for module in model.modules())


def test_a_single_value_has_no_variance():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3)).eval()
    with pytest.raises(DataError, match="one value per channel, which has no variance; use two or more images"):
        renew_norms(model, passes(1)[0])


@pytest.mark.parametrize("count", [1, 2, GROUP, GROUP + 1, 3 * GROUP, 1000])
def test_groups_are_as_equal_as_possible(count):
    sizes = group_sizes(count)
    assert sum(sizes) == count
    assert max(sizes) <= GROUP
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // GROUP)


@pytest.mark.sample(2)
@pytest.mark.parametrize("calibrate", ["batchnorm", "repair", "refit", "refit-joint", "refit-per-task", "refit-heads"])
def test_the_batch_size_does_not_matter(calibrate):
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    data = [[torch.cat(images(33, seed=seed))] for seed in (0, 1)]
    found = []
    for batch_size in (7, 66):
        merger = Merger(models, data, batch_size=batch_size, cache=False)
        found.append(merger.merge(method="permute", calibrate=calibrate).state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


def test_one_image_is_refused_where_it_has_no_variance():
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    with pytest.raises(DataError, match="use two or more images, or calibrate none"):
        hf_zipit.merge(models, images(1), cache=False)
    assert hf_zipit.merge(models, images(1), cache=False, calibrate="none")

"""Masks are cut as images are."""

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from transformers import ViTImageProcessor

from hf_zipit.data.alignment import cut, window_of
from hf_zipit.data.targets import open_targets
from hf_zipit.errors import DataError
from hf_zipit.sources.processors import processor_transform

SETTINGS = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.2,) * 3, "interpolation": "bicubic"}


def of_timm(**settings):
    return timm.data.create_transform(**{**SETTINGS, **settings}, is_training=False)


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (16, 90), (200, 40)])
def test_resizing_keeps_the_whole_image(size):
    squash = of_timm(crop_pct=1.0, crop_mode="squash")
    processor = processor_transform(ViTImageProcessor(size={"height": 32, "width": 24}))
    for transform in (squash, processor):
        assert window_of(transform, size, 3) == ((0, 1), (0, 1))


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64), (100, 300)])
@pytest.mark.parametrize("share", [1.0, 0.875, 0.5])
def test_a_centre_crop_is_found(size, share):
    height, width = size
    (top, tall), (left, wide) = window_of(of_timm(crop_pct=share, crop_mode="center"), size, 3)
    kept = share * min(size)
    assert tall == pytest.approx(kept / height, abs=0.03)
    assert wide == pytest.approx(kept / width, abs=0.03)
    assert top == pytest.approx((1 - tall) / 2, abs=0.03)
    assert left == pytest.approx((1 - wide) / 2, abs=0.03)


def test_padding_is_refused():
    with pytest.raises(DataError, match="pads, flips or distorts"):
        window_of(of_timm(crop_pct=1.0, crop_mode="border"), (32, 96), 3)


def test_flipping_is_refused():
    with pytest.raises(DataError, match="pads, flips or distorts"):
        window_of(lambda image: of_timm(crop_pct=1.0)(image).flip(-1), (32, 32), 3)


def test_a_mask_is_cut_as_its_image():
    """The image holds the class of each pixel as a grey value, so that the pixels themselves tell the right mask."""
    ids = np.zeros((64, 128), np.uint8)
    ids[:, 64:] = 2
    ids[:8] = 1
    picture = Image.fromarray(ids * 100)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [picture], "mask": [Image.fromarray(ids)]}, features=features)
    transform = of_timm(crop_pct=0.875, crop_mode="center", interpolation="nearest", mean=(0.0,) * 3, std=(1.0,) * 3)
    ((pixels, target),) = open_targets(rows, "image-segmentation", transform)
    expected = (pixels[0, 0] * 2.55).round().long()
    assert (target[0] == expected).double().mean() > 0.97
    assert target.unique().tolist() == [0, 1, 2]


def test_the_nearest_value_is_taken():
    values = torch.arange(12).reshape(3, 4)
    assert torch.equal(cut(values, ((0.0, 1.0), (0.0, 1.0)), (3, 4)), values)
    assert torch.equal(cut(values, ((0.0, 1.0), (0.5, 0.5)), (3, 2)), values[:, 2:])
    assert cut(values, ((0.0, 1.0), (0.0, 1.0)), (6, 8))[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]

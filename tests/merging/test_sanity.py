import pytest
import torch

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.merging.merger import Merger
from tests.helpers.models import images, tiny


def test_images_that_a_model_cannot_read_are_refused_before_the_work():
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    with pytest.raises(SourceError, match=r"resnet18 cannot run on an image of 4 x 32 x 32 \(channels"):
        Merger(models, [torch.zeros(8, 4, 32, 32)])


@pytest.mark.parametrize("scale", [1e18, 1e30])
def test_a_merge_that_is_not_finite_is_refused(scale):
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.mul_(scale)
    with pytest.raises(SourceError, match=r"not finite|NaN or infinite"):
        hf_zipit.merge(models, images(8), method="average", cache=False)


def test_outputs_that_are_not_finite_are_refused(monkeypatch):
    models = [tiny("resnet18", 0), tiny("resnet18", 1)]
    merger = Merger(models, images(8), cache=False)

    def spoil(state):
        for parameter in state.model.heads.parameters():
            parameter.data.fill_(3e38)

    monkeypatch.setattr("hf_zipit.calibration.none.none", spoil)
    with pytest.raises(
        SourceError, match=r"merging by select with none fails: task '.*' has outputs that are not finite"
    ):
        merger.merge(calibrate="none")

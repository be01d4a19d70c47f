"""Models of popular classes are traced, and what is written of them passes all checks."""

import pytest
import torch

from hf_zipit.find_spec import describe
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.tracing.check import fixed_share, same_grouping
from hf_zipit.tracing.tracer import trace
from tests.helpers.zoo import ZOO, build

FIXED = 0.06  # most models hold fewer indices of parameter axes fixed
MORE = {  # models that hold more: positions inside the stream, and projections that no spec can divide
    **{"maxvit_rmlp_pico_rw_256": 0.1, "tiny_vit_5m_224": 0.18, "beitv2_base_patch16_224": 0.13},
    **{"coatnet_pico_rw_224": 0.15, "mixer_s32_224": 0.09, "resnest14d": 0.3, "levit_128s": 0.34},
    **{"SiglipForImageClassification": 0.1, "SiglipVisionModel": 0.1, "LevitForImageClassification": 0.37},
    **{"Mask2FormerForUniversalSegmentation": 0.31, "DetrForObjectDetection": 0.12, "RTDetrForObjectDetection": 0.1},
    **{"RTDetrV2ForObjectDetection": 0.08, "DeformableDetrForObjectDetection": 0.25, "DFineForObjectDetection": 0.14},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.filterwarnings("ignore")  # of the libraries about the sizes of tiny models
def test_a_model_of_the_zoo_is_traced_and_described(name):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, size = build(name)
    pixels = torch.zeros(1, *size)
    found = trace(model, pixels)
    binding = bind(specs.parse(describe(model, pixels, "traced", found)), model)
    same_grouping(found, binding)
    assert fixed_share(found, binding) <= MORE.get(name, FIXED)

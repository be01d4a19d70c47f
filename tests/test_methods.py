"""Every method on every kind of model: copies, orders, several models, cuts; against obvious oracles."""

import pytest
import torch

import hf_zipit
from hf_zipit.chain import logits_of
from hf_zipit.checks import permuted, random_labels
from hf_zipit.matching.methods import METHODS
from hf_zipit.sources import find_spec, load
from tests.models import hf_vit, images, timm_vit, tiny, vgg

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
MODELS = {
    "resnet": lambda seed=0: tiny("resnet18", seed),
    "group norm": lambda seed=0: tiny("resnet50_gn", seed),
    "grouped": lambda seed=0: tiny("resnext50_32x4d", seed),
    "vgg": vgg,
    "vit": hf_vit,
    "fused vit": timm_vit,
}
EXACT = [name for name in METHODS if name != "average"]


def copies(model, count=2):
    binding = find_spec(load(model))
    return [model, *(permuted(model, binding, random_labels(binding, seed)) for seed in range(1, count))]


def merged(models, method, data=None, **options):
    tasks = [f"t{i}" for i in range(len(models))]
    options = {"calibrate": "none", "cache": False, "tasks": tasks, **options}
    return hf_zipit.merge(models, data or images(), method=method, **options)


def outputs(model):
    with torch.no_grad():
        return model(PIXELS).task_logits


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("name", MODELS)
def test_a_permuted_copy_gives_the_model_back(name, method):
    model = MODELS[name]()
    with torch.no_grad():
        expected = logits_of(model(PIXELS))
    for out in outputs(merged(copies(model), method)).values():
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)

"""Equal hashes mean equal activations: whatever changes a forward pass changes the hash, in every process alike."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from hf_zipit.statistics.content import content_of
from tests.helpers.models import hf_vit, timm_vit

SCALE = 1.0
CODE = """
from tests.helpers.models import hf_vit, timm_vit
from hf_zipit.statistics.content import content_of
print(content_of(hf_vit()), content_of(timm_vit()))
"""


class Scaled(nn.Module):
    """A module with a setting that its text does not show."""

    def __init__(self, factor=2):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor * SCALE


@pytest.mark.slow
def test_another_process_finds_the_same():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [content_of(hf_vit()), content_of(timm_vit())]


def test_settings_of_the_forward_pass_count():
    assert content_of(Scaled()) == content_of(Scaled())
    assert content_of(Scaled()) != content_of(Scaled(3))
    model = timm_vit()
    first = content_of(model)
    model.blocks[0].attn.scale *= 2
    assert content_of(model) != first


def test_code_of_classes_that_no_library_has_counts(monkeypatch):
    first = content_of(Scaled())
    with monkeypatch.context() as changed:
        changed.setattr(Scaled, "forward", lambda self, x: x + self.factor)
        assert content_of(Scaled()) != first
    assert content_of(Scaled()) == first
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert content_of(Scaled()) != first


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.register_buffer("b", torch.ones(1), persistent=False),
        lambda m: m.register_forward_hook(lambda module, args, out: out + 1),
        lambda m: m.register_forward_pre_hook(lambda module, args: args),
        lambda m: setattr(m, "tensor", torch.ones(2)),
        lambda m: m.half(),
        lambda m: setattr(m, "forward", lambda x: x),
        lambda m: setattr(m, "act", nn.functional.relu),
        lambda m: setattr(m, "act", partial(nn.functional.leaky_relu, negative_slope=0.2)),
    ],
)
def test_what_changes_a_module_changes_its_hash(change):
    model = nn.Linear(2, 2)
    model.act = partial(nn.functional.leaky_relu, negative_slope=0.1)
    before = content_of(model)
    change(model)
    assert content_of(model) != before


def test_where_a_model_comes_from_and_how_it_is_trained_does_not_count():
    model = hf_vit()
    before = content_of(model)
    model.config._name_or_path = "elsewhere"
    model.train().requires_grad_(False)
    assert content_of(model) == before


def test_objects_that_hold_each_other_are_described():
    model = Scaled()
    model.me = [model, {"me": model}]
    assert content_of(model) != content_of(Scaled())


def test_functions_that_prepare_images_differ_by_what_they_hold():
    def prepare(size):
        return lambda image: image[:size]

    assert content_of(prepare(3)) == content_of(prepare(3))
    assert content_of(prepare(3)) != content_of(prepare(4))
    assert content_of(partial(max, key=len)) != content_of(partial(max, key=abs))

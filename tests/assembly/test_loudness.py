"""Streams on one scale: the models compute what they did, and a louder parent does not count for more."""

import pytest
import torch

import hf_zipit
from hf_zipit.assembly.loudness import scaled, stream_norms
from hf_zipit.find_spec import find_spec
from hf_zipit.merging.merger import Merger
from hf_zipit.running import logits_of
from hf_zipit.sources.load import load_source
from tests.helpers.families import FAMILIES
from tests.helpers.models import hf_vit, images, tiny

DATA = torch.cat(images(32))
FREE = [("hf-vit", "plain"), ("timm-vit", "layer scale, registers"), ("timm-vit", "norm before"), ("hf-swin", "plain")]


def louder(model, factor=10.0, writing=()):
    binding = find_spec(load_source(model))
    return scaled(model, binding, dict.fromkeys(stream_norms(model, binding), factor), writing)


def loudness(model):
    """Root mean square of what the last norm reads, without its mean."""
    seen = []
    norm = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)][-1]
    handle = norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].var(-1, correction=0).mean().sqrt()))
    with torch.no_grad():
        model(DATA)
    handle.remove()
    return float(seen[0])


def test_a_louder_copy_computes_the_same():
    model = hf_vit(0)
    loud = louder(model)
    assert loudness(loud) == pytest.approx(10 * loudness(model), rel=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(loud(DATA).logits, model(DATA).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FREE)
def test_the_streams_of_parents_are_set_equal(kind):
    first, second = (FAMILIES[kind[0]][kind[1]](seed) for seed in (0, 1))
    start = {"norm before": ["norm_pre"], "plain": ["swin.embeddings.norm"] if kind[0] == "hf-swin" else []}
    parents = [first, louder(second, 10, start.get(kind[1], []))]
    merger = Merger(parents, DATA)
    mine = [source.model for source in merger.parents.sources]
    assert loudness(mine[0]) == pytest.approx(loudness(mine[1]), rel=0.5)
    assert loudness(parents[1]) > 4 * loudness(parents[0])  # those that were given stay as they were
    for given, equal in zip(parents, mine, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(logits_of(equal(DATA)), logits_of(given(DATA)), rtol=1e-3, atol=1e-3)


def test_a_louder_parent_makes_the_same_merge():
    first, second = hf_vit(0), hf_vit(1)
    some, other = (
        hf_zipit.merge([first, louder(second, factor)], DATA, method="select", calibrate="refit") for factor in (2, 20)
    )
    with torch.no_grad():
        for task, wanted in some(DATA).task_logits.items():
            found = other(DATA).task_logits[task]
            assert float((found - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


def test_models_without_layer_norms_stay_as_they_are():
    parents = [tiny("resnet18", 0), tiny("resnet18", 1)]
    merger = Merger(parents, DATA)
    assert [source.model for source in merger.parents.sources] == parents


def test_streams_that_are_about_equal_stay_as_they_are():
    parents = [hf_vit(0), louder(hf_vit(0), 1.01)]
    merger = Merger(parents, DATA)
    assert [source.model for source in merger.parents.sources] == parents


def test_a_stream_as_quiet_as_the_epsilon_of_its_norms_stays_as_it_is():
    parents = [hf_vit(0), louder(hf_vit(1), 1e-7)]
    merger = Merger(parents, DATA)
    assert [source.model for source in merger.parents.sources] == parents

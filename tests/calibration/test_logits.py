"""Classifiers of one class of several are fitted to centred logits, which softmax reads; others keep their logits."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hf_zipit
from hf_zipit.calibration.refit.follow import AffineMap
from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.calibration.refit.logits import CentredLogits, centre_logits, centred, softmax_spans
from hf_zipit.calibration.refit.targets import Target
from hf_zipit.running import logits_of
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import PROBLEMS, Branch
from tests.helpers.families import FAMILIES
from tests.helpers.models import hf_vit, images, tiny

SEVERAL = ("a", ["x", "y", "z"])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_tasks_of_one_class_of_several_are_found_among_others(problem):
    branches = [Branch((("b", ["p", "q"]), SEVERAL), {}, None, (problem, "single-label")), Branch((SEVERAL,), {})]
    expected = [(2, 5), (5, 8)]
    assert softmax_spans(branches) == ([(0, 2), *expected] if problem == "single-label" else expected)


def test_a_single_class_has_no_mean_to_lose():
    assert softmax_spans([Branch((("a", ["x"]), SEVERAL), {})]) == [(1, 4)]


def test_the_mean_is_taken_over_each_task():
    outputs = [torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    target = Target([torch.arange(3), torch.arange(3, 6)], 6, False)
    found = CentredLogits(target, [(0, 3), (3, 6)])(outputs, torch.zeros(4, dtype=torch.long))
    expected = torch.cat([out - out.mean(-1, keepdim=True) for out in outputs], -1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(CentredLogits(target, [])(outputs, torch.zeros(4)), torch.cat(outputs, -1))


CLASSIFIERS = {
    "resnet": tiny,
    "vit": lambda _, seed: hf_vit(seed),
    "distilled": lambda _, seed: FAMILIES["hf-deit"]["distilled"](seed),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("cut", [None, "half"])
@pytest.mark.sample(2)
def test_refit_logits_have_no_mean(name, cut):
    sources = [CLASSIFIERS[name]("cifar_resnet20", seed) for seed in (0, 1)]
    cut = "layer2" if cut and name == "resnet" else None
    merged = hf_zipit.merge(sources, images(), calibrate="refit-heads", cut=cut, tasks=["a", "b"], cache=False)
    plain = hf_zipit.merge(sources, images(), calibrate="batchnorm", cut=cut, tasks=["a", "b"], cache=False)
    pixels = torch.cat(images())
    with torch.no_grad():
        found, before = merged(pixels).task_logits, plain(pixels).task_logits
        for task, parent in zip("ab", sources, strict=True):
            wanted = logits_of(parent(pixels))
            wanted = wanted - wanted.mean(-1, keepdim=True)
            torch.testing.assert_close(found[task].mean(-1), torch.zeros(64), atol=1e-4, rtol=0)
            old = before[task] - before[task].mean(-1, keepdim=True)
            assert (found[task] - wanted).square().mean() < (old - wanted).square().mean()


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_logits_that_softmax_does_not_read_keep_their_mean(problem):
    sources = [replace(load_source(hf_vit(seed)), problem=problem) for seed in (0, 1)]
    with torch.no_grad():
        for source in sources:
            source.model.classifier.bias += 30
    merged = hf_zipit.merge(sources, images(), calibrate="refit-heads", tasks=["a", "b"], cache=False)
    with torch.no_grad():
        for out in merged(torch.cat(images())).task_logits.values():
            assert out.mean() > 25


def test_the_classifier_of_a_network_merged_whole_loses_the_mean_of_every_task():
    net, layer = nn.Sequential(nn.Linear(4, 5)), Layer((AffineMap("0"),))
    binding = SimpleNamespace(classifier=("0.weight", "0.bias"))
    branches = [Branch((("a", ["x", "y"]),), {}), Branch((SEVERAL,), {})]
    before = copy.deepcopy(net)
    targets = centre_logits(net, {layer: Target([torch.arange(5)], 5, False)}, binding, branches)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(net(x), centred(before(x), [(0, 2), (2, 5)]))
    assert isinstance(targets[layer], CentredLogits)


@pytest.mark.parametrize("classifier", [("other.weight",), ("0.weight",)])
def test_layers_that_are_no_classifier_of_these_tasks_are_left_alone(classifier):
    net, layer = nn.Sequential(nn.Linear(4, 5 if classifier != ("0.weight",) else 6)), Layer((AffineMap("0"),))
    before = copy.deepcopy(net.state_dict())
    target = Target([torch.arange(5)], 5, False)
    found = centre_logits(net, {layer: target}, SimpleNamespace(classifier=classifier), [Branch((SEVERAL,), {})])
    assert found == {layer: target}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())

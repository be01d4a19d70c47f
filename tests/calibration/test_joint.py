"""The refit for the joint prediction: its fit beside a slow, obvious oracle, and what it does to merges."""

import copy
import dataclasses

import numpy as np
import pytest
import timm
import torch
from torch import nn

import hf_zipit
from hf_zipit.calibration.refit import foreign
from hf_zipit.calibration.refit import joint as refit_joint_module
from hf_zipit.calibration.refit.classifiers import Classifier, are_last, read_opinions
from hf_zipit.calibration.refit.foreign import Opinions, choose_weight, draw_folds, fit_opinions
from hf_zipit.calibration.refit.joint import refit_ensemble
from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_images
from hf_zipit.find_spec import find_spec
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import randomise
from tests.helpers.families import FAMILIES
from tests.helpers.marks import slow_but
from tests.helpers.models import hf_vit, images, timm_vit, tiny


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def opinions(n=40, d=6, sizes=(3, 2), origin=0, **changes):
    """Random opinions; the first half of the images is from data set 0."""
    own = (torch.arange(n) >= n // 2) == bool(origin)
    values = {
        "x": random(n, d, seed=1 + origin) + 1,
        "logits": random(n, sum(sizes), seed=3 + origin),
        "weight": random(sum(sizes), d, seed=5 + origin),
        "bias": random(sum(sizes), seed=7 + origin),
    }
    return Opinions(own=own, sizes=sizes, **{**values, **changes})


def oracle(one, eps, ridge):
    """Least squares on weighted rows, stacked on rows that hold the ridge; each task is centred class by class."""
    parts = np.split(np.arange(sum(one.sizes)), np.cumsum(one.sizes)[:-1])
    x, own = one.x.numpy(), one.own.numpy()
    root = np.sqrt(np.where(own, 1, eps))[:, None]
    spread = root * (x - np.average(x, axis=0, weights=root[:, 0] ** 2)) if one.intercept else root * x
    penalty = np.sqrt(ridge * (spread**2).sum(0).mean())
    weights, biases = [], []
    for rows in parts:
        target = one.logits.numpy()[:, rows]
        target = (target - target.mean(1, keepdims=True)) * own[:, None]
        prior = one.weight.numpy()[rows] - one.weight.numpy()[rows].mean(0)
        bias = one.bias.numpy()[rows] - one.bias.numpy()[rows].mean()
        column = root if one.intercept else np.zeros_like(root)
        above = np.hstack([root * x, column])
        below = np.hstack([penalty * np.eye(x.shape[1]), np.zeros((x.shape[1], 1))])
        right = np.vstack([root * (target - (0 if one.intercept else bias)), penalty * prior.T])
        found = np.linalg.lstsq(np.vstack([above, below]), right, rcond=None)[0]
        weights.append(found[:-1].T)
        biases.append(found[-1] if one.intercept else bias)
    return torch.from_numpy(np.vstack(weights)), torch.from_numpy(np.concatenate(biases))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("d", [6, 100])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_fit_is_least_squares_on_weighted_rows(eps, d, intercept, monkeypatch):
    monkeypatch.setattr(foreign, "WEIGHTS", (eps,))
    monkeypatch.setattr(foreign, "RIDGES", (0.01,))
    both = [opinions(d=d, origin=k, intercept=intercept) for k in (0, 1)]
    chosen, found = fit_opinions(both, torch.arange(40) // 20)
    assert chosen == eps
    for one, solution in zip(both, found, strict=True):
        for value, expected in zip(solution, oracle(one, eps, 0.01), strict=True):
            torch.testing.assert_close(value, expected)


def test_the_ridge_has_the_smallest_error_on_images_that_were_not_fitted(monkeypatch):
    monkeypatch.setattr(foreign, "WEIGHTS", (0.3,))
    one = opinions(n=40, d=6)
    origin = torch.arange(40) // 20
    folds = [draw_folds(origin, generator) for generator in [torch.Generator().manual_seed(5)] for _ in range(3)]
    target = one.centred(one.logits) * one.own[:, None]
    errors = {}
    for ridge in foreign.RIDGES:
        errors[ridge] = 0
        for fold in folds:
            for number in range(5):
                rest, held = (
                    dataclasses.replace(one, x=one.x[some], logits=one.logits[some], own=one.own[some])
                    for some in (fold != number, fold == number)
                )
                weight, bias = oracle(rest, 0.3, ridge)
                missed = (held.x @ weight.T + bias - target[fold == number]).square()
                errors[ridge] += (missed * torch.where(held.own, 1, 0.3)[:, None]).sum().item()
    other = opinions(origin=1)
    _, found = fit_opinions([one, other], origin, seed=5)
    torch.testing.assert_close(found[0], oracle(one, 0.3, min(errors, key=errors.get)))


def test_every_fold_has_its_share_of_every_data_set():
    origin = torch.tensor([0] * 23 + [1] * 11)[torch.randperm(34, generator=torch.Generator().manual_seed(0))]
    folds = draw_folds(origin, torch.Generator().manual_seed(1))
    assert [sorted(folds[origin == k].bincount().tolist()) for k in (0, 1)] == [[4, 4, 5, 5, 5], [2, 2, 2, 2, 3]]
    assert int(draw_folds(torch.tensor([0, 0, 0, 0, 1, 1]), torch.Generator()).max()) == 1


def test_the_smallest_weight_is_chosen_that_is_as_good_as_the_best():
    n = 200
    origin = torch.arange(n) // (n // 2)
    classes = torch.arange(n) % 2
    sure = nn.functional.one_hot(classes, 2) * 20.0
    two = [Opinions(sure, sure, origin == k, [2], sure[:2], sure[0]) for k in (0, 1)]
    unsure = [sure * (origin == k)[:, None] for k in (0, 1)]  # no opinion on foreign images
    confused = [sure, sure]
    assert choose_weight({0.0: [confused], 0.1: [unsure], 1.0: [unsure]}, two, origin) == 0.1
    assert choose_weight({0.0: [unsure], 0.1: [confused], 1.0: [unsure]}, two, origin) == 0.0
    nearly, best = ([value.clone() for value in unsure] for _ in range(2))
    nearly[0][:3] = nearly[0][:3].flip(1)  # three images of 200, and two others, are the same but for noise
    best[0][3:5] = best[0][3:5].flip(1)
    assert choose_weight({0.0: [nearly], 0.1: [best], 1.0: [confused]}, two, origin) == 0.0


def test_a_class_that_a_parent_hardly_prefers_costs_little():
    n = 200
    origin = torch.arange(n) // (n // 2)
    likes = nn.functional.one_hot(torch.arange(n) % 2, 2) * 1.0
    two = [Opinions(likes, likes / 50, origin == k, [2], likes[:2], likes[0]) for k in (0, 1)]
    confused = [likes * torch.where(origin == k, 1, 2 * (torch.arange(n) % 10 == 0))[:, None] for k in (0, 1)]
    flipped = [likes.flip(1) * (origin == k)[:, None] for k in (0, 1)]
    assert choose_weight({0.0: [confused], 0.1: [flipped]}, two, origin) == 0.1


def confusing(n=200, seed=0):
    """Heads that are as sure of themselves on foreign images, though what they read could tell them apart.

    Input k is the evidence of head k. On foreign images a third input is as strong.
    """
    origin = torch.arange(n) // (n // 2)
    evidence = random(n, 2, seed=seed) * 8
    mark = [torch.where(origin == k, 0.0, evidence[:, k]) for k in (0, 1)]
    found = []
    for k in (0, 1):
        x = torch.stack([evidence[:, k], mark[k]], 1) + random(n, 2, seed=10 + k) / 10
        weight = torch.tensor([[0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64)
        logits = x @ weight.T
        found.append(Opinions(x, logits, origin == k, [2], weight, torch.zeros(2, dtype=torch.float64)))
    return found, origin


def test_foreign_images_teach_heads_to_leave_them_to_others():
    both, origin = confusing()
    weight, solutions = fit_opinions(both, origin)
    assert weight > 0
    fresh, _ = confusing(seed=20)
    owner = []
    for fits in ([(one.weight, one.bias) for one in fresh], solutions):
        parts = [(one.x @ w.T + b).log_softmax(1) for one, (w, b) in zip(fresh, fits, strict=True)]
        owner.append((torch.cat(parts, 1).argmax(1) // 2 == origin).double().mean().item())
    assert owner[0] < 0.65
    assert owner[1] > 0.95


def centred(logits):
    return logits - logits.mean(1, keepdim=True)


def merged_pair(sources, data, cut=None, **options):
    """The merge with a refit, and with a refit for the joint prediction."""
    merger = Merger(sources, data, cache=False, **options)
    return [merger.merge(method="permute", cut=cut, calibrate=name) for name in ("refit", "refit-joint")]


def changed(before, after):
    """The parameters in which two merges differ."""
    state = after.state_dict()
    return {name for name, value in before.state_dict().items() if not torch.equal(value, state[name])}


@pytest.fixture
def certain(monkeypatch):
    """Foreign images weigh as much as a task's own, whatever is best."""
    monkeypatch.setattr(foreign, "WEIGHTS", (1.0,))


def check_less_sure(alone, joint, data):
    """The heads of `joint` have less of an opinion on images of other sources."""
    for k, group in enumerate(groups_of(joint)):
        pixels = torch.cat([batch for number, part in enumerate(data) if number != k for batch in part])
        with torch.no_grad():
            found, other = (torch.cat([centred(m(pixels).task_logits[t]) for t in group], 1) for m in (joint, alone))
        assert found.square().sum() < other.square().sum() / 2


def groups_of(model):
    """The tasks of each source."""
    heads = model.config.heads
    return [[h["task"] for h in heads if h["source"] == k] for k in range(1 + max(h["source"] for h in heads))]


KINDS = {
    "cnn": (lambda seed: tiny("cifar_resnet20", seed), {}, {"fc"}),
    "cnn, cut": (lambda seed: tiny("cifar_resnet20", seed), {"cut": "layer1"}, {"fc"}),
    "hf-vit": (hf_vit, {}, {"classifier"}),
    "timm-vit": (timm_vit, {}, {"head"}),
    "timm-vit, cut": (timm_vit, {"cut": "blocks.0"}, {"head"}),
    "dinov2": (FAMILIES["hf-dinov2"]["plain"], {}, {"classifier"}),
    "deit": (FAMILIES["hf-deit"]["distilled"], {}, {"cls_classifier", "distillation_classifier"}),
}


@pytest.mark.parametrize("name", slow_but(["cnn", "deit", "timm-vit, cut"], KINDS))
def test_only_the_classifiers_change_and_are_less_sure_on_foreign_images(name, certain):
    make, options, classifiers = KINDS[name]
    sources = [make(seed) for seed in (0, 1)]
    before = [copy.deepcopy(source.state_dict()) for source in sources]
    data = [images(24, seed=seed) for seed in (3, 4)]
    alone, joint = merged_pair(sources, data, tasks=["a", "b"], **options)
    assert changed(alone, joint) == {
        f"heads.{k}.{c}.{p}" for k in (0, 1) for c in classifiers for p in ("weight", "bias")
    }
    check_less_sure(alone, joint, data)
    for source, state in zip(sources, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in source.state_dict().items())


def test_three_models(certain):
    data = [images(24, seed=seed) for seed in (3, 4, 5)]
    alone, joint = merged_pair([tiny("cifar_resnet20", seed, num_classes=3 + seed) for seed in range(3)], data)
    assert changed(alone, joint) == {f"heads.{k}.fc.{leaf}" for k in range(3) for leaf in ("weight", "bias")}
    check_less_sure(alone, joint, data)


@pytest.mark.slow
def test_a_model_without_a_chain_of_steps(certain):
    """Its classifier holds the classes of all tasks, one after the other."""
    args = {"img_size": 28, "patch_size": 14, "embed_dim": 24, "depth": 2, "num_heads": 4}
    models = [randomise(timm.create_model("cait_xxs24_224", num_classes=n, **args).eval(), n) for n in (5, 3)]
    data = [images(24, 28, seed=seed) for seed in (3, 4)]
    alone, joint = merged_pair([load_source(model, args) for model in models], data, tasks=["a", "b"])
    assert not joint.heads
    assert changed(alone, joint) == {"trunk.head.weight", "trunk.head.bias"}
    check_less_sure(alone, joint, data)


@pytest.mark.parametrize(("cut", "again", "heads"), [(None, None, 2), (None, "layer1", 2), ("layer2", "layer2", 3)])
def test_merges_that_are_merged_again(cut, again, heads, certain):
    """A full merge is one head with the classes of its tasks; one with a cut has a head for each."""
    first, second, third = (tiny("cifar_resnet20", seed, num_classes=3 + seed) for seed in range(3))
    pair = hf_zipit.merge([first, second], images(), cut=cut, tasks=["a", "b"], cache=False)
    data = [images(24, seed=seed) for seed in (3, 4)]
    alone, joint = merged_pair([pair, third], data, cut=again, tasks=["a", "b", "c"])
    assert changed(alone, joint) == {f"heads.{k}.fc.{leaf}" for k in range(heads) for leaf in ("weight", "bias")}
    check_less_sure(alone, joint, data)


def test_without_foreign_images_each_task_is_fitted_to_its_parent(monkeypatch):
    """Two tasks of one parent side by side, and a third of another."""
    monkeypatch.setattr(foreign, "WEIGHTS", (0.0,))
    monkeypatch.setattr(foreign, "RIDGES", (1e-6,))
    first, second, third = (tiny("cifar_resnet20", seed, num_classes=3 + seed) for seed in range(3))
    pair = hf_zipit.merge([first, second], images(), tasks=["a", "b"], cache=False)
    data = [[torch.cat(images(16, seed=seed))] for seed in (3, 4)]  # fewer than the classifiers have inputs
    _, joint = merged_pair([pair, third], data, tasks=["a", "b", "c"])
    with torch.no_grad():
        taught = [*pair(data[0][0]).task_logits.values(), third(data[1][0])]
        for task, pixels, wanted in zip("abc", [data[0][0]] * 2 + [data[1][0]], taught, strict=True):
            gap = centred(joint(pixels).task_logits[task]) - centred(wanted)
            assert gap.abs().max() < 1e-2 * wanted.abs().max()


def opened(count, seed):
    return open_images([torch.cat(images(count, seed=seed))], None)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_what_is_read_does_not_depend_on_batches(batch_size):
    nets = [hf_vit(seed) for seed in (0, 1)]
    found = [Classifier((net.classifier,), k, (3, 2)) for k, net in enumerate(nets)]
    parts = [opened(5, 1), opened(7, 2)]

    def student(pixels):
        return torch.cat([net(pixels).logits for net in nets], 1)

    with torch.no_grad():
        both, origin = read_opinions(found, student, nets, Passes(parts, batch_size))
        pixels = torch.cat([part[i][None] for part in parts for i in range(len(part))])
        for k, (net, one) in enumerate(zip(nets, both, strict=True)):
            torch.testing.assert_close(one.x, net.vit(pixels).last_hidden_state[:, 0])
            torch.testing.assert_close(one.logits, net(pixels).logits)
            assert torch.equal(one.own, origin == k)
            assert (one.weight.shape, one.bias.shape, one.intercept) == ((5, 24), (5,), True)
    assert origin.tolist() == [0] * 5 + [1] * 7
    assert not any(module._forward_pre_hooks for net in nets for module in net.modules())


def test_classifiers_are_told_from_layers_that_are_not_the_last():
    pixels = torch.randn(2, 3, 4, 4)
    layer = nn.Linear(48, 5)
    one = [Classifier((layer,), 0, (3, 2))]
    with torch.no_grad():
        assert are_last(one, nn.Sequential(nn.Flatten(), layer), pixels)
        assert are_last(
            one, lambda x: torch.cat([p.log_softmax(1) for p in layer(x.flatten(1)).split((3, 2), 1)], 1), pixels
        )
        assert not are_last(one, lambda x: 2 * layer(x.flatten(1)), pixels)  # a temperature
        assert not are_last(one, lambda x: layer(x.flatten(1)) + layer(x.flatten(1)), pixels)  # it runs twice
        tokens = [Classifier((nn.Linear(4, 5),), 0, (5,))]
        assert not are_last(tokens, lambda x: tokens[0].layers[0](x.flatten(1, 2)).mean(1), pixels)
        assert not are_last(one, lambda x: x.flatten(1)[:, :5], pixels)  # it never runs


def test_two_classifiers_are_one_whose_halves_they_are():
    layers = (nn.Linear(4, 6), nn.Linear(3, 6, bias=False))
    one = Classifier(layers, 0, (2, 1), first=2)
    before = [layer.weight.clone() for layer in layers]
    weight, bias, x = torch.randn(3, 7), torch.randn(3), torch.randn(9, 7)
    one.write(weight, bias)
    mean = (layers[0](x[:, :4]) + layers[1](x[:, 4:])) / 2
    torch.testing.assert_close(mean[:, 2:5], x @ weight.T + bias)
    torch.testing.assert_close((one.weight, one.bias), (weight, bias))
    others = [0, 1, 5]
    assert all(torch.equal(layer.weight[others], old[others]) for layer, old in zip(layers, before, strict=True))


def renewed(model, data):
    """A copy whose batch norms have the statistics of some images."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for pixels in data:
            model(pixels)
    return model.eval()


@pytest.mark.slow
def test_with_one_data_set_the_heads_aim_between_the_parents_and_their_renewed_selves(caplog):
    sources, data = [tiny("cifar_resnet20", seed) for seed in (0, 1)], images(40, seed=3)
    alone, joint = merged_pair(sources, data, tasks=["a", "b"], batch_size=len(data[0]))
    trunk = alone.trunk.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in joint.trunk.state_dict().items())
    with torch.no_grad():
        pixels = torch.cat(data)
        for task, parent in zip("ab", sources, strict=True):
            middle = (parent(pixels) + renewed(parent, data)(pixels)) / 2
            errors = [(model(pixels).task_logits[task] - middle).square().mean() for model in (joint, alone)]
            assert errors[0] < errors[1]
    assert "refit-joint" not in caplog.text


def test_one_data_set_and_no_batch_norms_is_the_refit_and_a_warning_says_so(caplog):
    alone, joint = merged_pair([hf_vit(seed) for seed in (0, 1)], images(20, seed=3), tasks=["a", "b"])
    assert not changed(alone, joint)
    assert "refit-joint is the same as --calibrate refit here: it needs one data set per model" in caplog.text


def test_a_data_set_of_one_image_cannot_be_divided(caplog):
    data = [images(20, seed=3), images(1, seed=4)]
    alone, joint = merged_pair([hf_vit(seed) for seed in (0, 1)], data, tasks=["a", "b"])
    assert not changed(alone, joint)
    assert (
        "refit-joint is the same as --calibrate refit here: it needs two images or more of each data set" in caplog.text
    )


def test_heads_that_do_not_end_in_linear_layers_are_left(caplog, monkeypatch):
    monkeypatch.setattr(refit_joint_module, "last_layers", lambda net, binding: ())
    data = [images(20, seed=seed) for seed in (3, 4)]
    alone, joint = merged_pair([hf_vit(seed) for seed in (0, 1)], data, tasks=["a", "b"])
    assert not changed(alone, joint)
    assert "the heads do not end in linear layers" in caplog.text


def test_an_ensemble_is_treated_in_the_same_way(certain):
    sources = [load_source(tiny("cifar_resnet20", seed)) for seed in (0, 1)]
    before = [copy.deepcopy(source.model.state_dict()) for source in sources]
    parts = [opened(24, seed) for seed in (3, 4)]
    binding = find_spec(sources[0])
    nets = refit_ensemble(sources, binding, Passes(parts), seed=0)
    for k, (net, source) in enumerate(zip(nets, sources, strict=True)):
        state = source.model.state_dict()
        assert all(torch.equal(value, before[k][name]) for name, value in state.items())
        assert {n for n, v in net.state_dict().items() if not torch.equal(v, state[n])} == {"fc.weight", "fc.bias"}
        pixels = torch.cat(images(24, seed=4 - k))  # those of the other
        with torch.no_grad():
            assert centred(net(pixels)).square().sum() < centred(source.model(pixels)).square().sum() / 2
    assert refit_ensemble(sources, binding, Passes(parts[:1]), seed=0) is None

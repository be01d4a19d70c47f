import copy

import pytest
import timm
import torch
from torch import nn

import hf_zipit
from hf_zipit.calibration.repair import _axis, _collect_affine
from hf_zipit.find_spec import find_spec
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.models import hf_vit, images, timm_vit, tiny


def narrow_vgg(seed):
    """A VGG without norms whose classifier has 32 units instead of 4096."""
    model = timm.models.vgg.VGG([6, "M", 8, 10, "M"], num_classes=5)
    model.pre_logits = timm.models.vgg.ConvMlp(10, 32, 7)
    model.head = timm.layers.ClassifierHead(32, 5)
    model.pretrained_cfg = {"architecture": "vgg11", "input_size": (3, 32, 32)}
    return randomise(model.eval(), seed)


MODELS = {
    "ResNet": lambda seed: tiny("resnet18", seed),
    "GroupNorm": lambda seed: tiny("resnet50_gn", seed),
    "grouped convolutions": lambda seed: tiny("resnext50_32x4d", seed),
    "VGG": lambda seed: narrow_vgg(seed),
    "ViT": timm_vit,
    "transformers ViT": hf_vit,
}


def merged(models, calibrate, data=None, **options):
    tasks = [f"t{i}" for i in range(len(models))]
    return hf_zipit.merge(
        models, data or images(64), calibrate=calibrate, tasks=tasks, cache=False, **{"method": "zip", **options}
    )


def outputs(model, path, data):
    """Mean and deviation of a layer's outputs over all data, `(C,)` each."""
    kept = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda m, _, out: kept.append(out.movedim(_axis(m), -1).flatten(0, -2)))
    with torch.no_grad():
        for pixels in data:
            model(pixels)
    handle.remove()
    values = torch.cat(kept).double()
    return values.mean(0), values.std(0, correction=0)


@pytest.mark.parametrize("cut", ["first", None])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.sample(3)
def test_a_merge_with_a_permuted_copy_is_left_as_it_is(name, cut):
    model = MODELS[name](0)
    binding = find_spec(load_source(model))
    models = [model, permuted(model, binding, random_labels(binding, 1))]
    cut = binding.cuts[2] if cut else None
    found = merged(models, "repair", images(32), method="permute", cut=cut)
    (pixels,) = images(4, seed=7)
    with torch.no_grad():
        expected = model(pixels) if isinstance(model(pixels), torch.Tensor) else model(pixels).logits
        for logits in found(pixels).task_logits.values():
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize(
    ("name", "path"), [("ResNet", "layer1.1.bn1"), ("VGG", "features.3"), ("ViT", "blocks.1.norm1")]
)
@pytest.mark.sample(1)
def test_units_have_the_mean_and_deviation_of_their_parents(name, path, models):
    parents = [MODELS[name](seed) for seed in range(models)]
    data = images(64)
    found = merged(parents, "repair", data, method="average", batch_size=64)
    plain = merged(parents, "none", data, method="average")
    targets = [torch.stack(values).mean(0) for values in zip(*(outputs(p, path, data) for p in parents), strict=True)]
    for target, mine, unrepaired in zip(
        targets, outputs(found, f"trunk.{path}", data), outputs(plain, f"trunk.{path}", data), strict=True
    ):
        assert (mine - target).norm() < 0.02 * target.norm()
        assert (unrepaired - target).norm() > 0.05 * target.norm()


def test_heads_follow_their_own_parent():
    parents = [tiny("resnet18", seed) for seed in (0, 1)]
    data, path = images(64), "layer3.0.bn1"
    found = merged(parents, "repair", data, cut="layer2", batch_size=64)
    for k, parent in enumerate(parents):
        pairs = zip(outputs(found, f"heads.{k}.{path}", data), outputs(parent, path, data), strict=True)
        for mine, target in pairs:
            assert (mine - target).norm() < 0.02 * target.norm()


def test_a_dead_unit_is_shifted_and_not_scaled():
    parents = [narrow_vgg(seed) for seed in (0, 1)]
    for parent in parents:
        with torch.no_grad():
            parent.features[3].weight[0] = 0
    found = merged(parents, "repair", method="average")
    assert (found.trunk.features[3].weight[0] == 0).all()
    bias = sum(parent.features[3].bias[0] for parent in parents) / 2
    torch.testing.assert_close(found.trunk.features[3].bias[0], bias)
    assert all(value.isfinite().all() for value in found.state_dict().values())


def test_layers_with_an_activation_or_standardised_weights_are_left_alone():
    """Their output cannot be scaled by scaling their parameters."""
    models = [timm.create_model("resnetv2_50t", layers=(1, 1), channels=(16, 24), num_classes=5) for _ in range(2)]
    for seed, model in enumerate(models):
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 32, 32)}
        randomise(model.eval(), seed)
    found = merged(models, "repair", images(4), method="average")
    norm = "stages.0.blocks.0.norm2.weight"  # followed by a ReLU inside the same module
    torch.testing.assert_close(found.trunk.get_parameter(norm), sum(m.get_parameter(norm) for m in models) / 2)

    for layer, expected in (
        (timm.layers.StdConv2d(3, 4, 3), False),
        (timm.layers.BatchNormAct2d(3), False),
        (nn.Conv2d(3, 4, 3, bias=False), True),
        (nn.BatchNorm2d(3).eval(), True),
        (timm.layers.LayerNorm2d(3), True),
    ):
        affine = set()
        layer.register_forward_hook(_collect_affine(affine))
        with torch.no_grad():
            layer(torch.randn(2, 3, 8, 8))
        assert (layer in affine) == expected


def test_nothing_else_changes_and_no_hook_stays():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    found, plain = merged(models, "repair"), merged(models, "none")
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for model in (*models, found):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for key, value in found.state_dict().items():
        if "running" in key or "fc" in key:
            assert torch.equal(value, plain.state_dict()[key])


def test_less_is_lost_than_without():
    """Averaged layers shrink; deep in a narrow net without norms little is left, and `repair` brings it back."""
    parents = [narrow_vgg(seed) for seed in (0, 1)]
    data = images(64)
    deep = "trunk.pre_logits.fc2"
    target = sum(outputs(parent, "pre_logits.fc2", data)[1] for parent in parents) / 2
    shrunk = outputs(merged(parents, "none", data, method="average"), deep, data)[1]
    whole = outputs(merged(parents, "repair", data, method="average"), deep, data)[1]
    assert shrunk.mean() < 0.7 * target.mean()
    assert whole.mean() == pytest.approx(target.mean().item(), rel=0.05)

import copy
import hashlib

import pytest
import timm
import torch

import hf_zipit
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.merger import Merger
from hf_zipit.specs.cuts import cut_names
from tests.helpers.marks import slow
from tests.helpers.measure import flops
from tests.helpers.models import TINY, images, resnet_spec_binding, shuffled, tiny

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def logits(model, pixels=PIXELS):
    with torch.no_grad():
        return model(pixels)


@pytest.mark.parametrize("method", [slow("permute"), "zip"])
@pytest.mark.parametrize("name", TINY)
@pytest.mark.sample(3)
def test_a_permuted_copy_gives_the_model_back(name, method):
    model = tiny(name)
    merged = hf_zipit.merge([model, shuffled(model)], images(), method=method, calibrate="none", tasks=["a", "b"])
    for out in logits(merged).task_logits.values():
        torch.testing.assert_close(out, logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("method", [slow("permute"), "zip"])
@pytest.mark.slow
def test_a_permuted_copy_gives_the_model_back_at_every_cut(method):
    model = tiny("resnet18")
    other = shuffled(model)
    names = cut_names(resnet_spec_binding(model))
    assert {"conv1", "layer1.0", "global_pool"} < set(names)
    assert names["layer1.0"] is None
    assert names["layer1.1"] == "layer1"
    merger = Merger([model, other], images(), tasks=["a", "b"], cache=False)
    for cut in [*names, "layer1"]:
        merged = merger.merge(method=method, cut=cut, calibrate="none")
        for out in logits(merged).task_logits.values():
            torch.testing.assert_close(out, logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("cut", [None, "layer2"])
@pytest.mark.parametrize("models", [2, 3, slow(4)])
def test_averaging_copies_is_the_identity(models, cut):
    model = tiny("resnet18")
    sources = [copy.deepcopy(model) for _ in range(models)]
    tasks = [f"t{i}" for i in range(models)]
    merged = hf_zipit.merge(sources, images(), method="average", cut=cut, calibrate="none", tasks=tasks)
    assert list(logits(merged).task_logits) == tasks
    for out in logits(merged).task_logits.values():
        torch.testing.assert_close(out, logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("models", [3, 4])
def test_several_permuted_copies_give_the_model_back(models):
    model = tiny("resnet18")
    sources = [model, *(shuffled(model, seed) for seed in range(1, models))]
    merged = hf_zipit.merge(sources, images(), cut="layer3", calibrate="none", tasks=[str(i) for i in range(models)])
    for out in logits(merged).task_logits.values():
        torch.testing.assert_close(out, logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param("resnet18", TINY["resnet18"], id="resnet18, tiny"),
        pytest.param("resnet50", TINY["resnet50"], id="resnet50, tiny", marks=pytest.mark.slow),
        pytest.param("resnet18", {}, id="resnet18", marks=pytest.mark.slow),
        pytest.param("resnet50", {}, id="resnet50", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_every_cut_costs_exactly_trunk_and_heads(name, sizes):
    a, b = (timm.create_model(name, **{**sizes, "num_classes": n}).eval() for n in (3, 5))
    x = torch.empty(1, 3, 64, 64, device="meta")
    whole = flops(copy.deepcopy(a).to("meta"), x) - 2 * 3 * a.num_features
    for cut in resnet_spec_binding(a).cuts:
        merged = hf_zipit.merge([a, b], method="average", cut=cut, calibrate="none", tasks=["a", "b"]).to("meta")
        steps = [merged.trunk.get_submodule(step) for step in merged.config.trunk]
        trunk = flops(torch.nn.Sequential(*steps).requires_grad_(False), x)
        head = whole - trunk
        assert flops(merged, x) == trunk + 2 * head + 2 * (3 + 5) * a.num_features
        assert flops(merged, x, tasks="b") == trunk + head + 2 * 5 * a.num_features


def test_heads_of_different_sizes_and_the_joint_prediction():
    a, b = tiny("resnet18", 0), tiny("resnet18", 1, num_classes=7)
    merged = hf_zipit.merge([a, b], images(), cut="layer2", tasks=["a", "b"])
    out = logits(merged)
    assert out.logits.shape == (4, 12)
    assert [x.shape[1] for x in out.task_logits.values()] == [5, 7]
    expected = torch.cat([x.log_softmax(-1) for x in out.task_logits.values()], -1)
    assert torch.equal(out.logits, expected)
    with torch.no_grad():
        one = merged(PIXELS, tasks="b")
        assert torch.equal(one.logits, out.task_logits["b"])
        assert merged(PIXELS, labels=torch.tensor([0, 5, 11, 2])).loss.isfinite()
        with pytest.raises(ValueError, match="unknown task 'c'; tasks: a, b"):
            merged(PIXELS, tasks=["c"])


def test_a_full_merge_is_one_linear_classifier_per_task():
    a, b = tiny("resnet18", 0), tiny("resnet18", 1)
    merged = hf_zipit.merge([a, b], images(), tasks=["a", "b"])
    assert merged.config.head == ["fc"]
    assert merged.config.unmerge is None
    heads = sum(p.numel() for p in merged.heads.parameters())
    assert heads == 2 * (32 * 5 + 5)


def test_the_sources_are_left_untouched():
    models = [tiny("resnet18", seed).train() for seed in (0, 1)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    merged = hf_zipit.merge(models, images(), tasks=["a", "b"], cut="layer1")
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    for model, state in zip(models, before, strict=True):
        assert model.training
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_same_seed_same_bytes():
    def digest(seed):
        merged = hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], images(), tasks=["a", "b"], seed=seed)
        joined = b"".join(v.numpy().tobytes() for v in merged.state_dict().values())
        return hashlib.sha256(joined).hexdigest()

    assert digest(0) == digest(0)


def test_batch_norms_are_re_estimated_on_the_data():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    data = images(64)
    merged = hf_zipit.merge(
        models, data, tasks=["a", "b"], batch_size=16, method="zip", calibrate="batchnorm", verdict=False
    )
    plain = hf_zipit.merge(models, data, tasks=["a", "b"], batch_size=16, method="zip", calibrate="none", verdict=False)
    with torch.no_grad():
        stem = torch.stack([merged.trunk.conv1(batch).mean((0, 2, 3)) for batch in data]).mean(0)
    torch.testing.assert_close(merged.trunk.bn1.running_mean, stem, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain.trunk.bn1.running_mean, stem, atol=1e-2)
    assert merged.trunk.bn1.momentum == models[0].bn1.momentum
    assert not merged.training


def test_the_composition_of_every_space_is_recorded():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    data = images()
    merged = hf_zipit.merge(
        models, data, method="zip", compat=True, calibrate="none", tasks=["a", "b"], alpha=0.1, beta=0.5
    )
    record = {space["name"]: space for space in merged.config.zipit["spaces"]}
    assert set(record) == set(resnet_spec_binding(models[0]).spaces)
    assert all(s["shared"] + s["within"] + s["alone"] == s["width"] for s in record.values())


def test_unknown_modules_are_refused():
    with pytest.raises(SourceError, match=r"not made by timm\.create_model"):
        hf_zipit.merge([torch.nn.Linear(2, 2)] * 2, images())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "magic"},
            "unknown method 'magic'; methods: auto, zip, select, permute, partial-ot, cca, ot, average",
        ),
        ({"cut": "layer9"}, r"unknown cut 'layer9'; legal cuts: conv1, .*layer2, .*global_pool"),
        ({"cut": "fc"}, "unknown cut 'fc'"),
        ({"alpha": 2.0}, "alpha is 2"),
        ({"beta": -1.0}, "beta is -1"),
        ({"balance": 1.5}, "balance is 1.5"),
        ({"sweeps": 0}, "sweeps is 0"),
        ({"calibrate": "hope"}, "unknown calibration 'hope'; calibrations: auto, batchnorm, .*none"),
        ({"tasks": ["a"]}, "2 different names are needed"),
        ({"tasks": ["a", "a"]}, "the names must differ"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionError, match=message):
        hf_zipit.merge([tiny("resnet18", 0), tiny("resnet18", 1)], images(), **options)


def test_models_that_differ_are_refused_naming_the_first_difference():
    a = tiny("resnet18")
    with pytest.raises(OptionError, match="needs two or more"):
        hf_zipit.merge([a], images())
    with pytest.raises(SourceError, match=r"has a parameter layer4\.1\.conv1\.weight"):
        hf_zipit.merge([a, tiny("resnet18", layers=(2, 1, 1, 2))], images())
    with pytest.raises(SourceError, match=r"the module maxpool is MaxPool2d\(.*\) and "):
        hf_zipit.merge([a, tiny("resnet18", aa_layer=torch.nn.AvgPool2d)], images())
    other = tiny("resnet18")
    other.pretrained_cfg = {**other.pretrained_cfg, "mean": (0.5, 0.5, 0.5)}
    with pytest.raises(SourceError, match="their preprocessing differs in mean"):
        hf_zipit.merge([a, other], images())

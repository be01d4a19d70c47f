"""Every method on every kind of model: copies, planted permutations, orders, several models, batches."""

import functools

import pytest
import torch

import hf_zipit
from hf_zipit.errors import OptionError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching import matcher, optimal
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import permuted, random_labels
from tests.helpers.marks import slow_but
from tests.helpers.models import hf_vit, images, timm_vit, tiny, vgg

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
MODELS = {
    "resnet": functools.partial(tiny, "cifar_resnet20"),
    "group norm": functools.partial(tiny, "resnet50_gn"),
    "grouped": functools.partial(tiny, "resnext50_32x4d"),
    "vgg": vgg,
    "vit": hf_vit,
    "fused vit": timm_vit,
}
ALL = [name for name, method in METHODS.items() if not method.control and not method.dense]
EXACT = [name for name in ALL if name != "average" and METHODS[name].rule is None]
BATCHES = images(32, batch=16)


def copies(model, count=2):
    """The model and permuted copies of it."""
    binding = find_spec(load_source(model))
    return [model, *(permuted(model, binding, random_labels(binding, seed)) for seed in range(1, count))]


def merger(models, batch_size=16):
    tasks = [f"t{i}" for i in range(len(models))]
    return Merger(models, BATCHES, tasks=tasks, batch_size=batch_size, cache=False)


def matches(run, method, cut=None, **options):
    return run.match(run.parents.plan(cut), Recipe(method=method, **options))


def together(match):
    """Which units are merged with which: `(n, n)`."""
    return match.labels[:, None] == match.labels


@pytest.mark.parametrize("name", slow_but(("resnet", "vgg", "vit"), MODELS))
@pytest.mark.sample(1)
def test_permuted_copies_give_the_model_back(name):
    model = MODELS[name]()
    with torch.no_grad():
        expected = logits_of(model(PIXELS))
    for models, methods in ((2, EXACT), (3, ["mudsc-zip", "c2m3"])):
        run = merger(copies(model, models))
        for method in methods:
            merged = run.merge(method=method, calibrate="none", heads="pair")  # kept heads need a refit
            with torch.no_grad():
                for out in merged(PIXELS).task_logits.values():
                    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4, msg=method)


@pytest.mark.parametrize("cut", ["layer1", "layer2"])
def test_cuts_leave_what_is_behind_to_each_model(cut):
    model = tiny("cifar_resnet20")
    run = merger(copies(model))
    with torch.no_grad():
        expected = logits_of(model(PIXELS))
        for method in ("git-rebasin", "mudsc-zip"):
            for out in run.merge(method=method, cut=cut, calibrate="none")(PIXELS).task_logits.values():
                torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("method", "compat"),
    [
        ("permute", False),
        ("c2m3", False),
        ("git-rebasin", False),
        ("git-rebasin", True),
        ("mudsc-align", False),
        ("mudsc-align", True),
    ],
)
@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.sample(4)
def test_planted_permutations_are_recovered_under_noise(name, method, compat):
    model = MODELS[name]()
    binding = find_spec(load_source(model))
    labels = random_labels(binding, 1)
    copy = permuted(model, binding, labels)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in copy.parameters():
            if value.ndim > 1:
                value.add_(0.1 * value.std() * torch.randn(value.shape, generator=g))
    found = matches(merger([model, copy]), method, compat=compat)
    for space, match in found.items():
        assert torch.equal(match.of(1)[labels[space]], match.of(0)), space


@pytest.mark.parametrize("name", ["resnet", "vit"])
@pytest.mark.sample(1)
def test_the_order_of_the_models_does_not_matter_and_no_unit_is_dropped(name):
    """`select` drops those that are like no unit that it keeps."""
    models = [MODELS[name](seed) for seed in range(3)]
    order = [2, 0, 1]
    first, second = merger(models), merger([models[k] for k in order])
    for method in ALL:
        there = matches(second, method)
        for space, here in matches(first, method).items():
            units = torch.cat([torch.arange(k * here.sizes[k], (k + 1) * here.sizes[k]) for k in order])
            assert torch.equal(together(here)[units][:, units], together(there[space])), (method, space)
            assert here.width == here.sizes[0], (method, space)
            assert here.counts.min() > 0, (method, space)
            assert here.labels.min() == 0 or (method == "select" and not here.kept[here.labels < 0].any()), (
                method,
                space,
            )


@pytest.mark.parametrize("method", ["permute", "zip", "mudsc-zip"])
def test_the_batch_size_does_not_matter(method):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    found = [matches(merger(models, size), method) for size in (5, 32)]
    for space, match in found[0].items():
        assert torch.equal(match.labels, found[1][space].labels)


def test_activations_are_not_needed_to_match_by_weights():
    models = copies(tiny("cifar_resnet20"))
    merged = hf_zipit.merge(models, method="git-rebasin", calibrate="none", tasks=["a", "b"])
    with torch.no_grad():
        torch.testing.assert_close(merged(PIXELS).task_logits["b"], models[0](PIXELS), rtol=0, atol=1e-4)
    with pytest.raises(OptionError, match="data"):
        hf_zipit.merge(models, method="mudsc-align", calibrate="none", tasks=["a", "b"])


def test_balance_goes_from_activations_to_weights():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    run = merger(models)

    def labels(method, **options):
        return torch.cat([match.labels for match in matches(run, method, **options).values()])

    assert torch.equal(labels("mudsc-align", balance=0.0), labels("permute"))
    found = [labels("mudsc-align", balance=balance) for balance in (0.0, 0.5, 1.0)]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_compat_orders_the_heads_of_queries_and_of_values_by_themselves():
    """The published procedure matches them apart, and so may change the function; the default never does."""
    models = [hf_vit(seed) for seed in (0, 1)]
    run = merger(models)

    def heads(**options):
        found = matches(run, "permute", **options)
        size = {name: space.size // space.groups for name, space in run.parents.binding.spaces.items()}
        return {
            n: (m.of(1) // size[n]).view(-1, size[n])[:, 0].tolist() for n, m in found.items() if size[n] != m.width
        }

    tied, apart = heads(), heads(compat=True)
    assert len(tied) == 6
    assert all(tied[name] == tied[name.replace("qk", "vo")] for name in tied)
    assert any(apart[name] != apart[name.replace("qk", "vo")] for name in apart)


def test_optimal_needs_its_extra_and_a_size_that_it_can_do(monkeypatch):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    monkeypatch.setattr(optimal, "LIMIT", 40)
    with pytest.raises(OptionError, match=r"optimal pairs at most 40 units, and two models have .* an earlier cut"):
        matches(merger(models), "optimal")
    monkeypatch.setitem(__import__("sys").modules, "rustworkx", None)
    with pytest.raises(OptionError, match=r"pip install 'hf-zipit\[optimal\]'"):
        matches(merger(models), "optimal", cut="layer1")


def test_the_gap_of_zip_to_the_optimum_is_logged(caplog):
    run = merger(copies(tiny("cifar_resnet20")))
    with caplog.at_level("INFO", logger=matcher.__name__):
        matches(run, "zip", cut="layer1")
    assert [r.getMessage().split(":")[0] for r in caplog.records] == list(matches(run, "zip", cut="layer1"))
    assert "at most 0.0 % from optimal" in caplog.records[0].getMessage()


def test_a_slow_method_says_how_long_it_will_take(caplog, monkeypatch):
    pytest.importorskip("rustworkx")
    monkeypatch.setattr(matcher, "PATIENT", 0)
    mine = merger([tiny("cifar_resnet20", seed) for seed in (0, 1)])
    matches(mine, "zip")
    assert "about" not in caplog.text
    matches(mine, "optimal")
    assert "optimal takes time that grows with the cube of the units: about 0 s of one core" in caplog.text

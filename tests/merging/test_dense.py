"""Merges with dense matches of real tiny models: what they give back, what they fold, what is refused."""

import functools

import pytest
import timm
import torch
from torch import nn

import hf_zipit
from hf_zipit.assembly.kinds import open_parents
from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.run import Comparison
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.fidelity import distance
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.methods import METHODS
from hf_zipit.merging.dense import assembled, dense_spaces, norms_behind_layers
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.running import logits_of
from hf_zipit.saving.load import load_merged
from hf_zipit.saving.save import save
from hf_zipit.sources.load import load_source
from hf_zipit.transform.dense import DenseMatch
from hf_zipit.transform.match import Match
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.families import resnetv2
from tests.helpers.models import cifar_vgg, hf_vit, images, shuffled, tiny, vgg
from tests.helpers.wholes import pyramid, shuffled_whole, whole
from tests.merging.test_widths import narrow_and_wide
from tests.saving.test_save import PIXELS as READ_PIXELS
from tests.saving.test_save import read_in_new_process

IMAGES = images(24, batch=8)
PIXELS = torch.cat(IMAGES)
DENSE = [name for name, method in METHODS.items() if method.dense]
COLD = {"temperature": 0.001}
MODELS = {
    "resnet": functools.partial(tiny, "cifar_resnet20"),
    "vgg": vgg,
    "vgg with norms": functools.partial(cifar_vgg, norm=True),
    "vit": hf_vit,
}
every_method = pytest.mark.parametrize("method", DENSE)


def merger(models, data=None, **options):
    tasks = list("abcd")[: len(models)]
    return Merger(models, data or IMAGES, cache=False, tasks=tasks, verdict=False, **options)


@torch.no_grad()
def answers(merged):
    return list(merged(PIXELS).task_logits.values())


def linear_vgg(norms=nn.BatchNorm2d):
    """A network of convolutions, and batch norms, without any nonlinearity."""
    plain = nn.Identity
    model = timm.models.vgg.VGG([6, 8, 10], num_classes=5, norm_layer=norms, act_layer=plain)
    model.num_features = model.head_hidden_size = 16
    model.pre_logits = timm.models.vgg.ConvMlp(10, 16, act_layer=plain)
    model.head = timm.models.vgg.ClassifierHead(16, 5)
    model.pretrained_cfg = {"architecture": "vgg11", "input_size": (3, 32, 32)}
    return randomise(model.eval(), 0)


def invertible(size, seed):
    """A well-conditioned matrix with entries of both signs."""
    turn = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[
        0
    ]
    return turn @ torch.diag(torch.linspace(0.5, 2, size, dtype=torch.float64))


def test_without_nonlinearities_any_invertible_map_keeps_the_function():
    """Batch norms are folded: their gains and variances say nothing of mixed units."""
    model = linear_vgg()
    parents = open_parents([load_source(model)] * 2)
    plan = parents.plan(None)
    matches = {}
    for number, (name, space) in enumerate(parents.binding.spaces.items()):
        t = invertible(space.size, number)
        spread = torch.eye(space.size, 2 * space.size, dtype=torch.float64)
        both = torch.cat([t, t], 1) / 2, torch.cat([t.inverse()] * 2)
        matches[name] = DenseMatch(*both, spread, (space.size,) * 2)
    merged = assembled(parents, ["a", "b"], plan, matches, {})
    with torch.no_grad():
        wanted = model(PIXELS)
    for out in answers(merged):
        torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)
    norms = [module for module in merged.trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    own = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, mine in zip(norms, own, strict=True):  # the deviations are those of the reference
        variance = mine.running_var * (mine.weight / (mine.running_var + mine.eps).sqrt()).square()
        torch.testing.assert_close(norm.weight, (variance + mine.eps).sqrt())
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


def test_cca_finds_the_maps_of_a_network_without_nonlinearities():
    """One model, and the same with the units of every space mixed by an invertible matrix."""
    model, other = linear_vgg(None), linear_vgg(None)
    binding = find_spec(load_source(model))
    state = model.state_dict()
    for number, (name, space) in enumerate(binding.spaces.items()):
        t = invertible(space.size, number)
        for row in (row for row in binding.table if row.space == name):
            a = t.inverse().T if row.role == "read" else t
            parts = state[row.parameter].double().movedim(row.axis, 0)
            mixed = torch.einsum("ij,bja->bia", a, parts.reshape(row.before, space.size, -1)).reshape(parts.shape)
            state[row.parameter] = mixed.movedim(0, row.axis).float()
    other.load_state_dict(state)
    with torch.no_grad():
        wanted = model(PIXELS)
        torch.testing.assert_close(other(PIXELS), wanted, rtol=1e-3, atol=1e-3)
    run = merger([model, other])
    out = answers(run.merge(method="cca", calibrate="none"))
    lost = [float((one - wanted).square().mean() / wanted.var()) for one in out]
    hard = answers(run.merge(method="permute", calibrate="none"))
    assert max(lost) < 0.05
    assert min(float((one - wanted).square().mean() / wanted.var()) for one in hard) > 10 * max(lost)


@every_method
@pytest.mark.parametrize("name", MODELS)
def test_permuted_copies_give_the_model_back(name, method):
    model = MODELS[name]()
    run = merger([model, shuffled(model), shuffled(model, 2)])
    with torch.no_grad():
        wanted = logits_of(model(PIXELS))
    for out in answers(run.merge(method=method, calibrate="none", **COLD)):
        torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)


@every_method
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_planted_permutations_are_recovered(name, method):
    model = MODELS[name]()
    binding = find_spec(load_source(model))
    labels = random_labels(binding, 1)
    run = merger([model, permuted(model, binding, labels)])
    found = run.match(run.parents.plan(None), Recipe(method=method, **COLD))
    soft = {space: match for space, match in found.items() if isinstance(match, DenseMatch)}
    assert len(soft) == {"resnet": 6, "vit": 3}[name]
    for space, match in soft.items():
        assert torch.equal((2 * match.merge_of(1)).argmax(0)[labels[space]], torch.arange(match.width)), space


@every_method
def test_what_heads_gather_is_aligned_one_to_one(method):
    model = tiny("cifar_resnet20")
    run = merger([model, shuffled(model)])
    for cut in ("layer2", "layer1"):
        recipe = Recipe(method=method, cut=cut, calibrate="none", **COLD)
        found = run.match(run.plan(recipe), recipe)
        plan = run.parents.plan(cut)
        assert isinstance(found[plan.crossing], Match)
        assert any(isinstance(match, DenseMatch) for match in found.values())
        with torch.no_grad():
            wanted = model(PIXELS)
        for out in answers(run.merge(recipe)):
            torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)
    whole = run.match(run.parents.plan(None), Recipe(method=method))
    assert isinstance(whole[run.parents.plan(None).crossing], DenseMatch)


def test_models_of_different_widths_are_aligned_to_the_widest():
    models = narrow_and_wide()
    for order in (models, models[::-1]):
        merged = merger(order).merge(method="ot", calibrate="none", **COLD)
        assert merged.trunk.conv1.weight.shape[0] == 32
        with torch.no_grad():
            wanted = models[0](PIXELS)
        for out in answers(merged):
            torch.testing.assert_close(out, wanted, rtol=1e-3, atol=1e-3)


@every_method
def test_unlike_models_are_merged_to_finite_numbers_with_every_calibration(method):
    run = merger([tiny("cifar_resnet20", seed) for seed in (0, 1)])
    for calibrate in ("none", "batchnorm", "refit"):
        for out in answers(run.merge(method=method, calibrate=calibrate)):
            assert out.isfinite().all(), calibrate


@every_method
@pytest.mark.parametrize("name", ["resnet", "vgg", "vit"])
def test_a_refit_is_nearer_to_the_parents(name, method):
    data = images(96, batch=32)
    run = merger([MODELS[name](seed) for seed in (0, 1)], data)
    plain, fitted = (
        distance(run.merge(method=method, calibrate=calibrate), run.parents.wholes, run.passes)
        for calibrate in ("batchnorm", "refit")
    )
    for task in plain:
        assert fitted[task].error < plain[task].error


@every_method
def test_batch_norms_keep_the_deviations_of_what_they_shift(method):
    """After their statistics are re-estimated, their outputs deviate as the match says."""
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    run = merger(models)
    merged = run.merge(method=method, calibrate="batchnorm")
    seen = {}
    merged.trunk.bn1.register_forward_hook(lambda _, __, out: seen.update(out=out.clone()))
    answers(merged)
    deviation = [
        (m.bn1.running_var * m.bn1.weight.square() / (m.bn1.running_var + m.bn1.eps)).double().sqrt() for m in models
    ]
    match = run.match(run.parents.plan(None), Recipe(method=method))["stem"]
    wanted = match.spread @ torch.cat(deviation) if method == "cca" else match.merge @ torch.cat(deviation)
    torch.testing.assert_close(seen["out"].double().std((0, 2, 3)), wanted.detach(), rtol=2e-2, atol=1e-3)


def test_a_dense_merge_is_saved_recorded_and_read_again(tmp_path):
    merged = merger([tiny("cifar_resnet20", seed) for seed in (0, 1)]).merge(method="cca")
    save(merged, tmp_path / "merged")
    spaces = merged.config.zipit["spaces"]
    assert all(space["dense"] for space in spaces)
    again = load_merged(tmp_path / "merged")
    assert all(torch.equal(a, b) for a, b in zip(answers(again), answers(merged), strict=True))


@pytest.mark.slow
@every_method
def test_a_new_process_gives_the_same_bits(method, tmp_path):
    merged = merger([tiny("cifar_resnet20", seed) for seed in (0, 1)]).merge(method=method)
    save(merged, tmp_path / "merged")
    with torch.no_grad():
        expected = merged(READ_PIXELS).task_logits
    found = read_in_new_process(tmp_path / "merged", tmp_path, "import hf_zipit; torch.set_num_threads(1)")
    assert all(torch.equal(found[task], expected[task]) for task in expected)


def test_comparisons_run_them_and_compare_features_through_their_maps(tmp_path):
    model = tiny("cifar_resnet20")
    run = merger([model, shuffled(model)])
    grid = Grid(["permute", *DENSE], [None], ["none"], widths=[1, 1.5], options=COLD)
    rows = Comparison(run, tmp_path, IMAGES).run(grid.recipes(run))
    assert [row.model for row in rows][:4] == ["permute", "permute", *DENSE]
    for row in rows[2:4]:
        assert row.error is None
        assert len(row.correlation) == 6
        assert min(row.correlation.values()) > 0.999


def test_what_they_cannot_do_is_refused_before_any_image_is_read():
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    for method in DENSE:
        with pytest.raises(OptionError, match=rf"'{method}' supports only width 1, as it maps units to those of one"):
            Recipe(method=method, width=1.5)
        with pytest.raises(OptionError, match=rf"flops_budget is 0.5: method '{method}' keeps one width"):
            Recipe(method=method, flops_budget=0.5)
        with pytest.raises(OptionError, match=rf"compat .* has no method '{method}'"):
            Recipe(method=method, compat=True)
        with pytest.raises(OptionError, match="'repair-weights', which scales units of the parents"):
            merger(models).plan(Recipe(method=method, calibrate="repair-weights"))
        with pytest.raises(OptionError, match="'repair', which scales units of the parents"):
            merger(models).plan(Recipe(method=method, calibrate="repair"))
        with pytest.raises(OptionError, match=rf"'{method}', but no feature space .* allows a dense match"):
            merger(models).plan(Recipe(method=method, cut="conv1"))
    with pytest.raises(OptionError, match=r"'cca', but the models have different widths .* ot"):
        merger(narrow_and_wide()).plan(Recipe(method="cca"))
    with pytest.raises(OptionError, match="temperature"):
        Recipe(method="ot", temperature=0)


def test_groups_are_aligned_one_to_one(caplog):
    run = merger([tiny("resnext50_32x4d", seed) for seed in (0, 1)])
    plan = run.parents.plan(None)
    with caplog.at_level("INFO", logger="hf_zipit"):
        found = run.match(plan, Recipe(method="cca"))
    for space, match in found.items():
        assert isinstance(match, Match) == (run.parents.binding.spaces[space].groups > 1), space
    assert "spaces allow a dense match; the others are matched one-to-one" in caplog.text
    with pytest.raises(OptionError, match=r"'ot', but no feature space of these models allows a dense match"):
        merger([tiny("resnet50_gn", seed) for seed in (0, 1)]).merge(method="ot")


def test_a_norm_that_follows_no_layer_forbids_mixing():
    """Pre-activation: the norms scale the units of the stream one by one, behind a sum."""
    parents = open_parents([load_source(resnetv2(seed, norm=True)) for seed in (0, 1)])
    plan = parents.plan(None)
    found = {space.name for space in dense_spaces(parents, plan, parents.spaces(plan), "cca")}
    norms = norms_behind_layers(parents)
    alone = {
        row.space
        for row in parents.binding.table
        if row.role == "carry" and row.parameter.rpartition(".")[0] not in norms
    }
    assert found
    assert alone
    assert not alone & found


def test_unused_options_are_named(caplog):
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    hf_zipit.merge(models, IMAGES, method="permute", temperature=0.5, calibrate="none", tasks=["a", "b"], verdict=False)
    assert "temperature is 0.5, which permute does not use" in caplog.text


@every_method
def test_a_shared_backbone_is_mixed_where_no_head_reads_it(method):
    """A classifier and a decoder that reads every stage: what it taps is aligned, and the rest is dense."""
    classifier, maps = tiny("resnet18"), pyramid()
    maps.encoder.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")})
    sources = [classifier, whole(shuffled_whole(maps))]
    run = Merger(sources, IMAGES, tasks=["classes", "maps"], cache=False, verdict=False)
    merged = run.merge(method=method, calibrate="none", **COLD)
    spaces = merged.config.zipit["spaces"]
    assert 0 < sum("dense" in space for space in spaces) < len(spaces)
    with torch.no_grad():
        out = merged(PIXELS).task_outputs
        torch.testing.assert_close(out["classes"].logits, classifier(PIXELS), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(out["maps"].reconstruction, maps(PIXELS), rtol=1e-3, atol=1e-3)


@every_method
def test_kept_heads_go_with_it(method):
    merged = merger([hf_vit(seed) for seed in (0, 1)]).merge(method=method, heads="all", calibrate="none")
    kinds = {("heads" in space, "dense" in space) for space in merged.config.zipit["spaces"]}
    assert kinds == {(True, False), (False, True), (False, False)}
    assert all(out.isfinite().all() for out in answers(merged))

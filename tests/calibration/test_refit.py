"""The refit: its parts beside slow, obvious oracles, and what a refit may and may not do to a merge."""

import functools
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

import hf_zipit
from hf_zipit.calibration.refit import fit as fitting
from hf_zipit.calibration.refit import observe, replay
from hf_zipit.calibration.refit.affine import FoldedNorm, fold_layer
from hf_zipit.calibration.refit.dual import Samples
from hf_zipit.calibration.refit.follow import AffineMap
from hf_zipit.calibration.refit.layers import Layer, LayerGroup, find_layers
from hf_zipit.calibration.refit.lessons import windows
from hf_zipit.calibration.refit.normal_equations import NormalEquations, fit_affine
from hf_zipit.calibration.refit.observe import LayerObserver, columns
from hf_zipit.calibration.refit.targets import Target
from hf_zipit.find_spec import find_spec
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.families import FAMILIES as ALL_FAMILIES
from tests.helpers.marks import slow, slow_but
from tests.helpers.models import TINY, hf_vit, images, shuffled, timm_vit, tiny, vgg


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CONVOLUTIONS = {
    "3 x 3": ((6, 4, 3, 3), {"padding": 1}),
    "1 x 1, stride": ((6, 4, 1, 1), {"stride": 2}),
    "stride and padding": ((6, 4, 3, 3), {"stride": 2, "padding": 1}),
    "oblong": ((6, 4, 5, 3), {"stride": (1, 2), "padding": (2, 0)}),
    "dilation": ((6, 4, 3, 3), {"dilation": 2, "padding": 2}),
    "same": ((6, 4, 5, 3), {"padding": "same"}),
    "groups": ((6, 2, 3, 3), {"groups": 2}),
    "depthwise": ((8, 1, 3, 3), {"groups": 4, "padding": 1}),
}


@pytest.mark.parametrize("positions", [10**6, 20])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_columns_are_what_a_convolution_reads(name, positions, monkeypatch):
    monkeypatch.setattr(observe, "POSITIONS", positions)
    shape, options = CONVOLUTIONS[name]
    x, weight = random(3, 4, 11, 9), random(*shape, seed=1)
    groups = options.get("groups", 1)
    rows = columns(x, weight, **options)
    out = torch.einsum("bpgd,gmd->bpgm", rows, weight.reshape(groups, -1, rows.shape[-1])).flatten(2)
    expected = functional.conv2d(x, weight, **options)
    torch.testing.assert_close(out, observe.samples(expected.movedim(1, -1)))
    assert out.shape[1] <= positions


def design(x, e, ridge, prior, intercept):
    """The same regression as an explicit least-squares problem, a group at a time."""
    weights, shifts = [], []
    for group in range(x.shape[1]):
        rows, target, start = x[:, group], e[:, group], prior[group]
        centred = rows - rows.mean(0) if intercept else rows
        unit = centred.square().sum(0).mean()
        extra = (ridge * unit).sqrt() * torch.eye(rows.shape[1], dtype=rows.dtype)
        extra = torch.cat([extra, torch.zeros(len(extra), 1)], 1)
        ones = torch.full((len(rows), 1), float(intercept), dtype=rows.dtype)
        matrix = torch.cat([torch.cat([rows, ones], 1), extra])
        wanted = torch.cat([target, extra[:, :-1] @ start.T])
        found = torch.linalg.pinv(matrix) @ wanted
        weights.append(found[:-1].T)
        shifts.append(found[-1])
    return torch.stack(weights), torch.stack(shifts)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 1e-3])
@pytest.mark.parametrize(("samples", "groups"), [(200, 1), (200, 3), (5, 1)])
@pytest.mark.parametrize("kind", [NormalEquations, Samples])
def test_the_streamed_ridge_is_the_explicit_one(kind, samples, groups, ridge, intercept):
    x, e = random(samples, groups, 9) + 2, random(samples, groups, 4, seed=1) - 1
    x, e = x.float().double(), e.float().double()  # samples are kept in float32
    prior = random(groups, 4, 9, seed=2)
    equations = kind.empty(groups, 9, 4)
    for part in (slice(0, 2), slice(2, 3), slice(3, 3), slice(3, samples)):
        equations.update(x[part], e[part])
    weight, shift = equations.solve(ridge, prior, intercept)
    expected = design(x, e, ridge, prior, intercept)
    near = {"rtol": 1e-4, "atol": 1e-5} if kind is Samples else {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(weight, expected[0], **near)
    torch.testing.assert_close(shift, expected[1], **near)
    for got, one in zip(equations.solve_all(ridge, [None, prior], intercept)[1], (weight, shift), strict=True):
        torch.testing.assert_close(got, one)
    rest = e - torch.einsum("tgd,gmd->tgm", x, weight) - shift
    torch.testing.assert_close(equations.error(weight, shift), rest.square().mean(0), **near)
    torch.testing.assert_close(equations.error(), e.square().mean(0))
    for got, without in zip(equations.of(slice(1, 3)).solve(ridge), equations.solve(ridge), strict=True):
        torch.testing.assert_close(got, without[:, 1:3], **near)
    out = torch.einsum("tgd,gmd->gtm", x[..., 2:5], prior[..., 2:5])
    torch.testing.assert_close(equations.moments(prior[..., 2:5], 2), (out.mean(1), out.var(1, correction=0)), **near)


@pytest.mark.parametrize("kind", [NormalEquations, Samples])
def test_equations_of_parts_add_up(kind):
    x, e = random(50, 2, 5) + 3, random(50, 2, 3, seed=1)
    parts = [kind.empty(2, 5, 3) for _ in range(4)]
    for equations, part in zip(parts, (slice(0, 1), slice(1, 1), slice(1, 30), slice(30, 50)), strict=True):
        equations.update(x[part], e[part])
    whole = kind.empty(2, 5, 3)
    whole.update(x, e)
    for name, value in vars(parts[0] + parts[1] + parts[2] + parts[3]).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_a_head_keeps_what_the_trunk_leaves_of_the_memory(monkeypatch):
    values = torch.zeros(4, 10)
    kept = [replay.Batch([values, values], torch.zeros(4), torch.arange(4))]
    passes = SimpleNamespace(images=[range(4)], accelerator=SimpleNamespace(num_processes=1))
    trunk = replay.Replay([], passes, [80], 1.0, 1, kept)
    monkeypatch.setattr(replay, "MEMORY", 400)
    assert trunk.fork([0], [], [20])._fits(0)
    assert not trunk.fork([0], [], [21])._fits(0)


def group_of(name, first, last):
    return LayerGroup((Layer((AffineMap(name),)),), first, last)


def test_layers_in_the_same_stages_are_taught_in_one_pass_where_their_targets_fit():
    groups = [group_of("a", 0, 0), group_of("b", 0, 1), group_of("c", 1, 1), group_of("d", 2, 2)]
    sizes = {group.layers[0]: 10 for group in groups}
    found = windows(groups, sizes, limit=20)
    assert [(window.groups, window.first, window.last, window.onward) for window in found] == [
        (tuple(groups[:3]), 0, 1, True),
        ((groups[3],), 2, 2, True),
    ]
    alone = windows(groups, sizes, limit=19)
    assert [window.groups for window in alone] == [(group,) for group in groups]
    assert [window.onward for window in alone] == [False, False, True, True]


def test_an_observer_may_end_the_pass_behind_its_last_layer():
    ran = []
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    net[1].register_forward_hook(lambda *_: ran.append(1))
    layer = Layer((AffineMap("0"),))
    x = random(2, 3).float()
    with torch.no_grad(), LayerObserver(net, [layer], stop=True) as seen:
        net(x)
    assert torch.equal(seen.results[layer][:, 0], net[0](x))
    assert torch.equal(seen.inputs[layer][:, 0, 0], x)
    assert not ran
    with pytest.raises(RuntimeError), torch.no_grad(), LayerObserver(net, [layer], stop=True):
        net(x[:, :2])  # other errors are not hidden


def test_the_target_is_the_mean_over_the_merged_units():
    sites = [random(4, 2, 3), random(4, 2, 3, seed=1)]
    index = [torch.tensor([0, 1, 1]), torch.tensor([1, 2, -1])]
    task = torch.tensor([0, 1, 1, 0])
    a, b = sites
    average = torch.stack([a[..., 0], (a[..., 1] + a[..., 2] + b[..., 0]) / 3, b[..., 1]], -1)
    torch.testing.assert_close(Target(index, 3, False)(sites, task), average)
    mine = average.clone()
    mine[task == 0, :, 1] = (a[..., 1] + a[..., 2])[task == 0] / 2
    mine[task == 1, :, 1] = b[task == 1][..., 0]
    torch.testing.assert_close(Target(index, 3, True)(sites, task), mine)


def layers_of(net, size=32):
    return [group.layers for group in find_layers(net, [net], torch.zeros(1, 3, size, size))]


def test_layers_take_their_norm_and_meet_the_residual_stream_together():
    found = layers_of(tiny("cifar_resnet20"))  # one block per stage, the first without a projection
    assert found[:4] == [
        (Layer((AffineMap("conv1", "bn1"),)),),
        (Layer((AffineMap("layer1.0.conv1", "layer1.0.bn1"),)),),
        (Layer((AffineMap("layer1.0.conv2", "layer1.0.bn2"),), added=True),),
        (Layer((AffineMap("layer2.0.conv1", "layer2.0.bn1"),)),),
    ]
    last = AffineMap("layer2.0.conv2", "layer2.0.bn2"), AffineMap("layer2.0.downsample.0", "layer2.0.downsample.1")
    assert found[4] == (Layer(last, added=True),)
    assert found[-1] == (Layer((AffineMap("fc"),)),)
    assert len(found) == 2 + 3 * 2


def test_layers_of_transformers_are_queries_keys_and_values_together():
    found = layers_of(hf_vit())
    names = [[layer.maps[0].module.rpartition("layer.0.")[2] for layer in group] for group in found[1:5]]
    assert [len(group) for group in found[1:5]] == [3, 1, 1, 1]
    assert [group[0].added for group in found[1:5]] == [False, True, False, True], names
    scaled = layers_of(timm_vit(name="vit_small_patch14_reg4_dinov2"))
    assert scaled[2] == (Layer((AffineMap("blocks.0.attn.proj", scale="blocks.0.ls1.gamma"),), added=True),)


class Odd(nn.Module):
    """A layer whose output is used twice, one that runs twice, one under a parametrisation, and a dropout."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.twice, self.free, self.last = (nn.Linear(4, 4) for _ in range(5))
        nn.utils.parametrizations.weight_norm(self.free)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        a = self.a(x)
        x = a + self.b(a)
        x = x + self.drop(self.last(self.free(x)))
        return self.twice(self.twice(x))


def test_layers_that_cannot_be_refit_on_their_own_are_seen():
    torch.manual_seed(0)
    net = Odd().eval()
    found = [group.layers for group in find_layers(net, [net], torch.ones(2, 4))]
    assert found == [
        (Layer((AffineMap("a"),)),),
        (Layer((AffineMap("b"),), True),),
        (Layer((AffineMap("last"),), True),),
    ]


def merged_pair(make, **options):
    sources = [make(seed) for seed in (0, 1)]
    options = {"method": "zip", "calibrate": "refit", "tasks": ["a", "b"], **options}
    return sources, hf_zipit.merge(sources, images(), **options)


PIXELS = images(4, seed=9)[0]


def centred(logits):
    """What softmax reads of logits."""
    return logits - logits.mean(-1, keepdim=True)


def task_logits(model):
    with torch.no_grad():
        return model(PIXELS).task_logits


def preactivated(seed=0):
    """A residual network whose norms read the stream, and not the output of a layer."""
    model = timm.create_model("resnetv2_50t", layers=(1, 1), channels=(16, 24), num_classes=5)
    return randomise(model.eval(), seed)


@pytest.mark.parametrize("cut", [None, slow("half")])
@pytest.mark.parametrize("name", ["resnet18", *map(slow, ("resnext50_32x4d", "resnet50_gn", "pre-activation"))])
def test_a_refit_of_permuted_copies_changes_nothing(name, cut):
    model = tiny(name) if name in TINY else preactivated()
    binding = find_spec(load_source(model))
    copies = [model, permuted(model, binding, random_labels(binding, 1))]
    cut = binding.cuts[len(binding.cuts) // 2] if cut else None
    merged = hf_zipit.merge(copies, images(), cut=cut, calibrate="refit", tasks=["a", "b"])
    with torch.no_grad():
        expected = centred(model(PIXELS))
    for out in task_logits(merged).values():
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-3)


def small_vgg(seed, norm=False):
    """Without timm's 4096 units, which take a minute to refit."""
    model = vgg(seed, norm)
    model.pre_logits = timm.models.vgg.ConvMlp(10, 24, 7)
    model.head = timm.layers.ClassifierHead(24, 5)
    return randomise(model, seed)


SMALL = functools.partial(tiny, "cifar_resnet20")


FAMILIES = {
    "resnet": SMALL,
    "pre-activation": preactivated,
    "squeeze and excite": lambda seed: tiny("seresnet50", seed),
    "vgg": small_vgg,
    "vgg, batch norm": lambda seed: small_vgg(seed, norm=True),
    "hf vit": hf_vit,
    "timm vit": timm_vit,
}
QUICK = ("resnet", "pre-activation", "hf vit")


@pytest.mark.parametrize("name", slow_but(QUICK, FAMILIES))
@pytest.mark.sample(1)
def test_every_layer_comes_closer_and_puts_out_what_was_predicted(name, monkeypatch):
    """What is written is the fit, no layer's error on the held-out images grows, and the heads come closer."""
    fit, changed, alone = fitting.choose, [], []

    def choose(folded, parts, accelerator):
        before, predicted = folded.weight, []
        monkeypatch.setattr(folded, "write", lambda *args: predicted.append(args) or type(folded).write(folded, *args))
        fit(folded, parts, accelerator)
        after = fold_layer(folded.net, folded.layer)
        alone.extend([folded] * isinstance(folded, FoldedNorm))
        change = predicted[0][0] if predicted else torch.zeros_like(before)
        torch.testing.assert_close(after.weight, before + change, rtol=1e-4, atol=1e-5)
        for part in parts if predicted else []:
            found = [value[:, part.units] for value in predicted[0][:2]]
            assert not any(map(torch.count_nonzero, found)) or part.test.error(*found).sum() < part.test.error().sum()
        changed.append(bool(predicted))

    monkeypatch.setattr(fitting, "choose", choose)
    sources, merged = merged_pair(FAMILIES[name])
    assert sum(changed) > len(changed) / 2
    assert len(alone) == (3 if name == "pre-activation" else 0)
    plain = hf_zipit.merge(sources, images(), calibrate="batchnorm", tasks=["a", "b"])
    held = torch.cat(images())[::10]
    with torch.no_grad():
        for task, parent in zip("ab", sources, strict=True):
            wanted = centred(logits_of(parent(held)))
            error, before = ((centred(m(held).task_logits[task]) - wanted).square().mean() for m in (merged, plain))
            assert error < before


@pytest.mark.parametrize("name", ["resnet", "pre-activation", "timm vit"])
def test_a_written_layer_puts_out_the_old_output_plus_the_fit(name):
    net = FAMILIES[name](0).eval()
    pixels = torch.cat(images(32))
    for group in find_layers(net, [net], pixels[:1])[1:5]:
        layer = group.layers[0]
        seen = LayerObserver(net, [layer])
        with torch.no_grad(), seen:
            net(pixels)
        x, site, folded = seen.inputs[layer], seen.results[layer], fold_layer(net, layer)
        groups, units, inputs = folded.weight.shape
        equations = NormalEquations.empty(groups, inputs, units)
        equations.update(x.flatten(0, 1), site.flatten(0, 1).unflatten(1, (groups, units)))
        change, shift = random(*folded.weight.shape) / 10, random(groups, units, seed=1) * folded.intercept
        expected = site + (torch.einsum("bpgd,gmd->bpgm", x.double(), change) + shift).flatten(2).float()
        folded.write(change, shift, equations)
        again = LayerObserver(net, [layer], inputs=False)
        with torch.no_grad(), again:
            net(pixels)
        torch.testing.assert_close(again.results[layer], expected, rtol=1e-3, atol=1e-3)


def test_windows_are_read_as_positions_of_their_image():
    net = nn.Linear(3, 2)
    layer = Layer((AffineMap(""),))
    tokens = random(4, 6, 5, 3).float()  # images, windows, tokens
    with torch.no_grad(), LayerObserver(net, [layer], images=4) as seen:
        out = net(tokens.flatten(0, 1))
    assert torch.equal(seen.inputs[layer], tokens.flatten(1, 2)[:, :, None])
    assert torch.equal(seen.results[layer], out.view(4, 30, 2))


def test_a_refit_norm_holds_the_statistics_of_what_it_reads():
    _, merged = merged_pair(preactivated)
    stem, norm = merged.trunk.stem, merged.trunk.stages[1].blocks[0].norm1
    with torch.no_grad():
        x = merged.trunk.stages[0](stem(torch.cat(images())))
    x = x.movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(norm.running_mean, x.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, x.var(0, correction=0), rtol=1e-3, atol=1e-3)


def test_estimating_the_norms_of_a_refit_again_changes_little():
    _, merged = merged_pair(FAMILIES["resnet"])
    bn = merged.trunk.layer3[0].bn1
    with torch.no_grad():
        seen = LayerObserver(merged.trunk, [Layer((AffineMap("layer3.0.conv1"),))], inputs=False)
        with seen:
            merged(torch.cat(images()))
    site = next(iter(seen.results.values())).flatten(0, 1)
    torch.testing.assert_close(bn.running_mean, site.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bn.running_var, site.var(0, correction=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cut", [slow(None), "layer2"])
@pytest.mark.slow
def test_batches_and_the_memory_for_activations_make_no_difference(cut, monkeypatch):
    def state(batch_size, memory):
        monkeypatch.setattr(replay, "MEMORY", memory)
        _, merged = merged_pair(FAMILIES["resnet"], cut=cut, batch_size=batch_size)
        return merged.state_dict()

    one, other = state(64, 2**30), state(5, 0)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("data", ["one", slow("two"), "few", "constant"])
@pytest.mark.parametrize("name", ["resnet", slow("timm vit")])
def test_data_that_say_little_do_no_harm(name, data):
    pixels = {"one": images(1), "two": images(2), "few": images(4), "constant": [torch.ones(20, 3, 32, 32)]}[data]
    sources = [FAMILIES[name](seed) for seed in (0, 1)]
    merged = hf_zipit.merge(sources, pixels, method="average", calibrate="refit", tasks=["a", "b"])
    plain = hf_zipit.merge(sources, pixels, method="average", calibrate="none", tasks=["a", "b"])
    scale = torch.stack(list(task_logits(plain).values())).abs().max()
    for out in task_logits(merged).values():
        assert out.isfinite().all()
        assert out.abs().max() < 20 * scale
    if data == "one":  # nothing is left to fit once an image is held out
        assert all(torch.equal(v, plain.trunk.state_dict()[k]) for k, v in merged.trunk.state_dict().items())
        for task, out in task_logits(merged).items():
            torch.testing.assert_close(out, centred(task_logits(plain)[task]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cut", [slow(None), "layer2"])
def test_a_refit_merge_is_saved_and_loaded(cut, tmp_path):
    _, merged = merged_pair(SMALL, cut=cut)
    loaded = load_merged(saving.save(merged, tmp_path / "merged"))
    for task, out in task_logits(loaded).items():
        assert torch.equal(out, task_logits(merged)[task])
    assert loaded.config.zipit["recipe"]["calibrate"] == "refit"


def test_a_refit_merge_merges_again():
    """Trunk and one head are a plain model, whose norms hold the statistics of what they read."""
    _, merged = merged_pair(SMALL)
    plain = SMALL(0)
    plain.load_state_dict({**merged.trunk.state_dict(), **merged.heads[0].state_dict()})
    with torch.no_grad():
        expected = plain(PIXELS)
    torch.testing.assert_close(expected, task_logits(merged)["a"])
    again = hf_zipit.merge([plain, shuffled(plain)], images(), calibrate="batchnorm", tasks=["a", "b"])
    for out in task_logits(again).values():
        torch.testing.assert_close(out, expected, rtol=0.05, atol=0.3)


def refit_kinds(monkeypatch):
    """A refit of VGGs, and how each layer was fitted: kind, inputs, samples."""
    kinds, fit = [], fitting.choose

    def choose(folded, parts, accelerator):
        kinds.append((type(parts[0].fit), folded.weight.shape[2], parts[0].fit.count))
        fit(folded, parts, accelerator)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "choose", choose)
        return merged_pair(small_vgg)[1].state_dict(), kinds


@pytest.mark.slow
def test_layers_of_more_inputs_than_samples_are_refit_on_these_with_the_same_result(monkeypatch):
    found, kinds = refit_kinds(monkeypatch)
    assert [(inputs, count) for kind, inputs, count in kinds if kind is Samples] == [(490, 4 * 57)]
    monkeypatch.setattr(fitting, "_kind", lambda *_: (NormalEquations, 1))
    for name, value in refit_kinds(monkeypatch)[0].items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "value"), [("INPUTS", 100), slow("NUMBERS", 100 * (490 + 24))])
def test_layers_of_too_many_inputs_are_refit_on_some_of_the_samples(name, value, monkeypatch):
    """On three of seven tens of images, held-out ones among them: 24 images, 3 of them held out, 4 positions each."""
    monkeypatch.setattr(fitting, name, value)
    found, kinds = refit_kinds(monkeypatch)
    assert {inputs: count for kind, inputs, count in kinds if kind is Samples} == {490: 4 * 21}
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.slow
def test_targets_of_a_task_are_those_of_its_parent():
    sources, data = [SMALL(seed) for seed in (0, 1)], [images(20, seed=seed) for seed in (3, 4)]
    average, alone = (
        hf_zipit.merge(sources, data, method="zip", calibrate=name, tasks=["a", "b"])
        for name in ("refit", "refit-per-task")
    )
    assert not torch.equal(average.trunk.layer2[0].conv1.weight, alone.trunk.layer2[0].conv1.weight)
    assert all(out.isfinite().all() for out in task_logits(alone).values())


def test_a_refit_per_task_on_one_data_set_says_that_only_the_first_model_teaches(caplog):
    sources = [SMALL(seed) for seed in (0, 1)]
    options = {"calibrate": "refit-per-task", "cut": "layer1", "tasks": ["a", "b"], "cache": False}
    hf_zipit.merge(sources, [images(20, seed=3), images(20, seed=4)], **options)
    assert "only the first model teaches" not in caplog.text
    hf_zipit.merge(sources, images(20, seed=3), **options)
    assert "refit-per-task got one data set for all models, so only the first model teaches" in caplog.text


def test_heads_alone_are_refit_on_the_images_of_their_task():
    sources = [FAMILIES["resnet"](seed) for seed in (0, 1)]
    data = [images(40, seed=seed) for seed in (3, 4)]
    options = {"tasks": ["a", "b"], "cut": None}
    heads = hf_zipit.merge(sources, data, calibrate="refit-heads", **options)
    plain = hf_zipit.merge(sources, data, calibrate="batchnorm", **options)
    trunk = plain.trunk.state_dict()
    assert all(torch.equal(value, trunk[name]) for name, value in heads.trunk.state_dict().items())
    with torch.no_grad():
        for part, (task, parent) in zip(data, zip("ab", sources, strict=True), strict=True):
            pixels = torch.cat(part)
            wanted = centred(parent(pixels))
            errors = [(centred(m(pixels).task_logits[task]) - wanted).square().mean() for m in (heads, plain)]
            assert errors[0] < errors[1]


@pytest.mark.parametrize("cut", [None, "half"])
@pytest.mark.parametrize("name", ["hf-swin", "timm-swin", "hf-beit", "hf-clip", "hf-deit"])
@pytest.mark.sample(1)
def test_steps_with_arguments_are_run_and_every_layer_behind_them_is_refit(name, cut, monkeypatch):
    """Blocks that are given the grid of tokens and attend inside windows, pooling that is given its classifiers."""
    reached, fit = set(), fitting.choose

    def choose(folded, parts, accelerator):
        reached.update(affine.module for affine in folded.layer.maps)
        fit(folded, parts, accelerator)

    monkeypatch.setattr(fitting, "choose", choose)
    for make in ALL_FAMILIES[name].values():
        reached.clear()
        model = make(0)
        cuts = find_spec(load_source(model)).cuts
        sources, merged = merged_pair(make, cut=cuts[len(cuts) // 2] if cut else None)
        linear = {path for path, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        assert reached == linear
        plain = hf_zipit.merge(sources, images(), calibrate="none", tasks=["a", "b"], cut=merged.config.cut)
        held = torch.cat(images())[::10]
        with torch.no_grad():
            for task, parent in zip("ab", sources, strict=True):
                wanted = centred(logits_of(parent(held)))
                error, before = ((centred(m(held).task_logits[task]) - wanted).square().mean() for m in (merged, plain))
                assert error < before


def test_layers_that_do_not_read_the_image_are_left_out():
    """A Swin v2 computes its relative positions by an MLP over a table."""
    args = {"img_size": 32, "patch_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4), "window_size": 4}
    net = randomise(timm.create_model("swinv2_tiny_window8_256", num_classes=3, **args).eval(), 0)
    groups = find_layers(net, [net], torch.randn(1, 3, 32, 32))
    found = [layer.maps[0].module for group in groups for layer in group.layers]
    assert any("mlp.fc1" in path for path in found)
    assert not any("cpb_mlp" in path for path in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_affine_fit_of_plain_tensors_is_least_squares_and_keeps_to_the_prior(dtype):
    x, y, prior = (torch.randn(*shape, dtype=dtype) for shape in ((50, 6), (50, 3), (3, 6)))
    weight, bias = fit_affine(x, y, ridge=0)
    found = torch.linalg.lstsq(torch.cat([x, x.new_ones(50, 1)], 1).double(), y.double()).solution.T
    assert weight.dtype == bias.dtype == dtype
    assert torch.allclose(weight.double(), found[:, :6], atol=1e-5)
    assert torch.allclose(bias.double(), found[:, 6], atol=1e-5)
    assert torch.allclose(fit_affine(x, y, prior, ridge=1e9)[0], prior, atol=1e-5)

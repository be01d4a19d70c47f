"""Which positions are read is found for every kind of classifier, and layers are fitted to these positions."""

import functools

import pytest
import torch

import hf_zipit
from hf_zipit.calibration.refit import fit as fitting
from hf_zipit.calibration.refit.affine import FoldedLayer
from hf_zipit.calibration.refit.choose import FEW, RIDGES, PartFit, split
from hf_zipit.calibration.refit.follow import AffineMap
from hf_zipit.calibration.refit.layers import Layer, find_layers
from hf_zipit.calibration.refit.normal_equations import NormalEquations
from hf_zipit.calibration.refit.read_positions import read_positions
from hf_zipit.data.batches import make_accelerator
from hf_zipit.running import logits_of
from tests.helpers.families import FAMILIES, MLP, hf
from tests.helpers.models import hf_vit, images, timm_vit, tiny

PATCHES = 16
relu_vit = functools.partial(hf_vit, hidden_act="relu")


def positions(model, pixels=None):
    """For every layer that is not read everywhere: path -> the positions read by each third of its units."""
    pixels = torch.cat(images(2)) if pixels is None else pixels
    groups = find_layers(model, [lambda x: logits_of(model(x))], pixels[:1])
    layers = [layer for group in groups for layer in group.layers]
    found = read_positions(model, [model], [layers], pixels.split(1))[0]
    thirds = {layer.maps[0].module: mask.tensor_split(3, 1) for layer, mask in found.items()}
    return {name: [part.any(1).nonzero().flatten().tolist() for part in parts] for name, parts in thirds.items()}


@pytest.mark.parametrize("make", [hf_vit, relu_vit])
def test_the_last_block_is_read_at_the_class_token(make):
    found = positions(make())
    assert len(found) == 4  # queries, the projection behind the heads, and the two layers of the MLP
    assert all(".2." in name and parts == [[0]] * 3 for name, parts in found.items())


def test_of_fused_queries_keys_and_values_only_the_queries_are_read_in_part():
    found = positions(timm_vit())
    everywhere = list(range(PATCHES + 1))
    assert found.pop("blocks.2.attn.qkv") == [[0], everywhere, everywhere]
    assert found == {f"blocks.2.{name}": [[0]] * 3 for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}


def test_a_distilled_model_reads_two_tokens():
    found = positions(FAMILIES["hf-deit"]["distilled"](0))
    assert len(found) == 4
    assert all(part == [0, 1] for parts in found.values() for part in parts)


def test_registers_are_not_read_where_class_token_and_patches_are():
    model = FAMILIES["hf-dinov2"]["registers"](0)
    registers = model.config.num_register_tokens
    found = positions(model)
    read = [0, *range(1 + registers, 1 + registers + PATCHES)]
    assert found
    assert all(part == read for name, parts in found.items() for part in parts)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(timm_vit, class_token=False, global_pool="avg"),
        FAMILIES["hf-swin"]["plain"],
        FAMILIES["timm-swin"]["plain"],
        functools.partial(tiny, "cifar_resnet20"),
    ],
)
def test_pooled_means_read_everything(make):
    assert positions(make()) == {}


def test_patches_are_read_where_the_class_token_is_not():
    found = positions(hf("BeitForImageClassification", **MLP, use_mean_pooling=True))
    assert found
    assert all(part == list(range(1, PATCHES + 1)) for parts in found.values() for part in parts)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ridge(x, e, penalty, prior):
    """`W` and `b` with `|e - W x - b|^2 + penalty * unit * |W - prior|^2`, from rows of an explicit problem."""
    mean_x, mean_e = x.mean(0), e.mean(0)
    unit = (x - mean_x).square().sum(0).mean()
    root = (penalty * unit).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    rows = torch.cat([x - mean_x, root])
    weight = torch.linalg.lstsq(rows, torch.cat([e - mean_e, root @ prior.T])).solution.T
    return weight, mean_e - weight @ mean_x


def test_a_layer_read_in_part_is_fitted_there_with_the_fit_at_all_positions_as_prior():
    net = torch.nn.Sequential(torch.nn.Linear(5, 3)).double()
    x, e = random(60, 4, 5) + 1, random(60, 4, 3, seed=1)
    e[:, 0] += x[:, 0] @ random(5, 3, seed=2)
    e[:, 1:] += x[:, 1:] @ (random(5, 3, seed=2) + random(5, 3, seed=3) / 3)
    read = torch.tensor([True, False, False, False])
    empty = [NormalEquations.empty(1, 5, 3) for _ in range(3)]
    part = PartFit(torch.arange(3), read, *empty)
    fitted = torch.arange(60) >= 6
    part.update(x[:, :, None], e[:, :, None], fitted, ~fitted)
    weight, shift = part.best(FoldedLayer(net, Layer((AffineMap("0"),))), make_accelerator())

    def error(solution):
        return (e[:6, 0] - x[:6, 0] @ solution[0].T - solution[1]).square().sum()

    flat = [value[6:].flatten(0, 1) for value in (x, e)]
    zeros = torch.zeros(3, 5).double()
    broad = min(RIDGES, key=lambda penalty: error(ridge(*flat, penalty, zeros)))
    wide = ridge(*flat, broad, zeros)
    close = min(FEW, key=lambda penalty: error(ridge(x[6:, 0], e[6:, 0], penalty, wide[0])))
    assert error(ridge(x[6:, 0], e[6:, 0], close, wide[0])) < error(wide)
    more = [torch.cat([value, one[:6, 0]]) for value, one in zip(flat, (x, e), strict=True)]  # and the held-out images
    best = ridge(x[:, 0], e[:, 0], close, ridge(*more, broad, zeros)[0])
    torch.testing.assert_close(weight[0], best[0])
    torch.testing.assert_close(shift[0], best[1])


def test_units_are_split_by_the_positions_at_which_they_are_read():
    mask = torch.tensor([[True, True, True, True], [False, True, True, False]])
    parts = split(mask, 4)
    assert sorted((units.tolist(), None if read is None else read.tolist()) for units, read in parts) == [
        ([0, 3], [True, False]),
        ([1, 2], None),
    ]


def test_only_read_positions_of_the_last_block_are_fitted_and_held_out(monkeypatch):
    counts, choose = {}, fitting.choose

    def seen(folded, parts, accelerator):
        counts[folded.layer.maps[0].module] = [
            (len(part.units), part.fit.count, part.test.count, part.rest and part.rest.count) for part in parts
        ]
        choose(folded, parts, accelerator)

    monkeypatch.setattr(fitting, "choose", seen)
    hf_zipit.merge([timm_vit(0), timm_vit(1)], images(20), calibrate="refit", tasks=["a", "b"], cache=False)
    tokens = PATCHES + 1
    assert counts["blocks.1.attn.qkv"] == [(72, 18 * tokens, 2 * tokens, None)]
    assert sorted(counts["blocks.2.attn.qkv"]) == [(24, 18, 2, 18 * PATCHES), (48, 18 * tokens, 2 * tokens, None)]
    assert counts["blocks.2.mlp.fc2"] == [(24, 18, 2, 18 * PATCHES)]


def test_the_batch_size_does_not_matter_where_few_positions_are_read():
    found = []
    for batch_size in (7, 40):
        merged = hf_zipit.merge(
            [hf_vit(0), hf_vit(1)], images(40), calibrate="refit", batch_size=batch_size, tasks=["a", "b"], cache=False
        )
        found.append(merged.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)

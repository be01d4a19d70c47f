"""RegMean against normal equations that are summed image by image."""

import pytest
import torch
from torch import nn

from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_all
from hf_zipit.deltas import regmean as module
from hf_zipit.deltas.regmean import OFF_DIAGONAL, Inputs, regmean, regmean_sequential
from hf_zipit.errors import OptionError


def network(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(36, 5)]
    return nn.Sequential(*layers).double().eval()


def pixels(seed, count=30):
    return list(torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed)).double().split(7))


def passes(*data):
    data = [list(part) for part in data] if len(data) > 1 else data[0]
    return Passes(open_all(data, 2, None, channels=3), batch_size=4)


def setting():
    base, models = network(0), [network(1), network(2)]
    start = {name: value.clone() for name, value in base.state_dict().items()}
    return models, start, [{n: v - start[n] for n, v in model.state_dict().items()} for model in models]


def solved(deltas, inputs):
    """The solution of the normal equations, from the inputs of each model as rows."""
    grams = [rows.T @ rows for rows in inputs]
    grams = [OFF_DIAGONAL * gram + (1 - OFF_DIAGONAL) * torch.diag(gram.diagonal()) for gram in grams]
    right = sum(delta.flatten(1) @ gram for delta, gram in zip(deltas, grams, strict=True))
    return torch.linalg.lstsq(sum(grams), right.T).solution.T.reshape(deltas[0].shape)


def patches(value):
    return nn.functional.unfold(value, 3, 1, 1, 2).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("sets", [1, 2])
def test_regmean_solves_on_the_inputs_of_each_model(sets):
    models, start, deltas = setting()
    data = [pixels(5), pixels(6)][:sets]
    found = regmean(deltas, Inputs(models, passes(*data), start))
    own = [torch.cat(data[k if sets == 2 else 0]) for k in range(2)]
    with torch.no_grad():
        first = [patches(value) for value in own]
        last = [model[:4](value) for model, value in zip(models, own, strict=True)]
    torch.testing.assert_close(found["0.weight"], solved([d["0.weight"] for d in deltas], first), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["4.weight"], solved([d["4.weight"] for d in deltas], last), rtol=1e-3, atol=1e-4)
    for name in ("0.bias", "2.weight", "4.bias"):  # no layer that is solved for
        torch.testing.assert_close(found[name], (deltas[0][name] + deltas[1][name]) / 2)


def test_the_sequential_form_solves_on_the_inputs_of_the_merge():
    models, start, deltas = setting()
    data = [pixels(5), pixels(6)]
    states = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    found = regmean_sequential(deltas, Inputs([network(1), network(2)], passes(*data), start))
    merged = network(0)
    merged.load_state_dict({name: start[name] + value for name, value in found.items()})
    with torch.no_grad():
        inputs = [merged[:4](torch.cat(part)) for part in data]
    wanted = solved([d["4.weight"] for d in deltas], inputs)
    torch.testing.assert_close(found["4.weight"], wanted, rtol=1e-3, atol=1e-4)
    assert all(
        torch.equal(model.state_dict()[n], v) for model, s in zip(models, states, strict=True) for n, v in s.items()
    )


def test_equal_models_stay_as_they_are():
    _, start, deltas = setting()
    same = [deltas[0], deltas[0]]
    for rule, data in ((regmean, [pixels(5)]), (regmean_sequential, [pixels(5), pixels(6)])):
        found = rule(same, Inputs([network(1), network(1)], passes(*data), start))
        for name, value in found.items():
            torch.testing.assert_close(value, deltas[0][name], rtol=1e-3, atol=1e-3)


def test_the_sequential_form_needs_a_data_set_per_model():
    models, start, deltas = setting()
    with pytest.raises(OptionError, match="needs a data set per model"):
        regmean_sequential(deltas, Inputs(models, passes(pixels(5)), start))


@pytest.mark.parametrize(
    "options", [{"padding": "valid"}, {"padding": "same", "dilation": 2}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_inputs_of_convolutions_are_padded_as_the_layer_pads(options):
    layer = nn.Conv2d(2, 1, 3, bias=False, **options).double()
    value = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    output = layer(value)
    gram = module._gram(layer, value)
    weight = layer.weight.flatten()
    torch.testing.assert_close(weight @ gram @ weight, output.square().sum())


def test_windows_that_lie_one_after_the_other_are_told_apart():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, value):  # two windows of each image, one after the other
            return self.layer(value.flatten(2).transpose(1, 2).reshape(2 * len(value), 50, 3))

    start = {name: torch.zeros_like(value) for name, value in Windows().double().state_dict().items()}
    deltas = [{name: torch.full_like(value, k + 1.0) for name, value in start.items()} for k in range(2)]
    data = [pixels(5), pixels(6)]
    found = regmean_sequential(deltas, Inputs([Windows().double() for _ in range(2)], passes(*data), start))
    rows = [torch.cat(part).flatten(2).transpose(1, 2).flatten(0, 1) for part in data]
    torch.testing.assert_close(
        found["layer.weight"], solved([d["layer.weight"] for d in deltas], rows), rtol=1e-4, atol=1e-4
    )

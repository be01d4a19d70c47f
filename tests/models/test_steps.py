"""Running a model as steps: what a step is given, and what it goes on with."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_zipit.models.steps import OPS, run_steps


class Layer(nn.Module):
    """Adds what it is given, and returns more than one value."""

    def forward(self, x, given=0, mask=0):
        assert mask is None
        return x + (sum(given) if isinstance(given, tuple) else given or 0), "attention"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.a, self.b = Layer(), nn.Linear(4, 2), nn.Linear(4, 2)
        self.wide = nn.Linear(8, 2)
        self.config = SimpleNamespace(registers=2)

    def embed(self, x):
        return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("given", "added"),
    [("$image", 12 + 20), ("$grid", 3 + 5), ("$config.registers", 2), ("$config.nothing", 0), ("none", 0)],
)
def test_a_step_is_given_its_arguments_and_goes_on_with_its_first_value(given, added):
    tokens = torch.zeros(2, 15, 4)  # patches of 4 x 4
    out = run_steps(Net(), [f"layer(given={given}, mask=none)"], tokens, (12, 20))
    assert torch.equal(out, tokens + added)


def test_the_grid_of_padded_images():
    out = run_steps(Net(), ["layer(given=$grid, mask=none)"], torch.zeros(1, 2 * 3, 4), (15, 20))
    assert out[0, 0, 0] == 2 + 3


def test_methods_and_functions():
    net, pixels = Net(), torch.arange(24.0).view(1, 4, 2, 3)
    tokens = run_steps(net, ["call:embed"], pixels, (2, 3))
    assert torch.equal(tokens, pixels.view(1, 4, 6).mT)
    both = run_steps(net, ["op:classify_tokens(a, b)"], tokens, (2, 3))
    torch.testing.assert_close(both, (net.a(tokens[:, 0]) + net.b(tokens[:, 1])) / 2)
    step = "op:classify_first_and_mean(wide, skip=$config.registers)"
    read = torch.cat([tokens[:, 0], tokens[:, 3:].mean(1)], -1)
    assert torch.equal(run_steps(net, [step], tokens, (2, 3)), net.wide(read))
    assert torch.equal(OPS["mean_map"](pixels), OPS["mean_tokens"](tokens))
    assert torch.equal(OPS["mean_patches"](tokens), tokens[:, 1:].mean(1))
    assert torch.equal(OPS["first_token"](tokens), tokens[:, 0])

"""What the tracer must follow, one tiny model for each kind."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from hf_zipit.errors import SpecError
from hf_zipit.find_spec import describe, review
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.tracing.check import difference, fixed_share, same_grouping, tally
from hf_zipit.tracing.tracer import trace

PIXELS = torch.zeros(1, 3, 8, 8)


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def described(model, pixels=PIXELS):
    """A trace that keeps the logits, and the binding of the spec that is written from it."""
    found = trace(model, pixels)
    moved, scale = difference(model, found, pixels)
    assert moved <= 1e-9 * max(1.0, scale)
    binding = bind(specs.parse(describe(model, pixels, "traced", found)), model)
    same_grouping(found, binding)
    return found, binding


def sizes(binding):
    return sorted(space.size for space in binding.spaces.values())


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), FrozenBatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_weights_that_are_buffers_move_like_parameters():
    found, binding = described(Frozen())
    assert sizes(binding) == [8]
    assert {row.parameter for row in binding.table} == {
        "conv.weight", "conv.bias", "head.weight",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    }  # fmt: skip
    assert "norm.weight" not in found.unused


def test_a_saved_table_of_positions_is_traced_like_a_parameter():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)
            self.register_buffer("positions", torch.randn(1, 4, 8))

        def forward(self, x):
            return self.head(self.norm(self.embed(x).flatten(2).mT + self.positions).mean(1))

    _, binding = described(Positions())
    assert sizes(binding) == [8]
    assert ("positions", 2) in {(row.parameter, row.axis) for row in binding.table}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        self.second = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))
        for i in (0, 2):
            self.second[i].weight, self.second[i].bias = self.first[i].weight, self.first[i].bias
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x.mean((2, 3)))
        return self.head(x + self.second(x + self.first(x)))


def test_tied_weights_move_under_all_of_their_names():
    found, binding = described(Tied())
    assert sizes(binding) == [6, 8]
    assert torch.equal(found.axes["first.0.weight", 0], found.axes["second.0.weight", 0])
    assert {row.space for row in binding.table if row.parameter.endswith(".0.bias")} == {
        next(row.space for row in binding.table if row.parameter == "second.2.weight" and row.role == "read")
    }


class Gated(nn.Module):
    """As in FocalNet: one layer writes features, context and two gates, each of which is used on its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6)
        self.split = nn.Conv2d(6, 6 + 6 + 2, 1)
        self.context, self.out, self.head = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)

    def forward(self, x):
        x = self.inner(x)
        features, context, gates = self.split(self.norm(x)).split((6, 6, 2), 1)
        mixed = context * gates[:, :1] + context.relu().mean((2, 3), keepdim=True) * gates[:, 1:]
        return self.head((x + self.out(features * self.context(mixed))).mean((2, 3)))


def test_a_unit_that_is_picked_out_by_its_index_is_fixed():
    found, binding = described(Gated())
    assert sizes(binding) == [6, 6, 6]
    assert found.axes["split.weight", 0].tolist()[12:] == [-1, -1]
    assert tally(found)["slice in the model"] == 4  # two gates, each with a bias
    assert not binding.held


class Picked(nn.Module):
    """As in detectors: the tokens with the highest score are picked, and sampled around by offsets."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8)
        self.score, self.inner, self.outer = nn.Linear(8, 4), nn.Linear(8, 6), nn.Linear(6, 8)
        self.offset, self.head = nn.Linear(8, 2), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.stem(x))
        tokens = x.flatten(2).mT
        pooled = tokens.view(len(x), -1, 4, 8).max(2).values
        pooled = pooled + self.outer(self.inner(pooled).relu())
        best = self.score(pooled).max(-1).values.topk(3, 1).indices
        chosen = pooled.gather(1, best.unsqueeze(-1).expand(-1, -1, 8))
        sampled = F.grid_sample(x, self.offset(chosen)[:, None].tanh(), align_corners=False)
        return self.head(sampled.mean((2, 3)))


def test_units_move_through_maxima_gathering_and_sampling():
    found, binding = described(Picked())
    assert sizes(binding) == [6, 8]
    assert set(tally(found)) == {"max in the model", "groups that differ or overlap", "convolution in stem"}
    assert found.axes["score.weight", 0].eq(-1).all()  # which class is the largest depends on their order
    assert found.axes["offset.weight", 0].eq(-1).all()  # as x and y are not the same


class Unbiased(nn.Module):
    """Attention over one fused projection without a bias, so that nothing but its weight holds queries and keys."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12)
        self.qkv, self.proj, self.head = nn.Linear(12, 36, bias=False), nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        q, k, v = self.qkv(self.norm(x)).view(len(x), -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_queries_and_keys_that_no_bias_accompanies_are_free():
    found, binding = described(Unbiased())
    assert sizes(binding) == [12, 12, 12]
    assert [space.groups for space in binding.spaces.values()].count(3) == 2
    assert fixed_share(found, binding) == pytest.approx(3 / sum(map(len, found.axes.values())))  # the image


class Interleaved(Unbiased):
    """As in LeViT: the queries, keys and values of one head follow each other, which no spec can say."""

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        q, k, v = self.qkv(self.norm(x)).view(len(x), -1, 3, 12).transpose(1, 2).split(4, -1)
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_what_the_spec_leaves_alone_is_written_as_held_and_reported():
    model = Interleaved()
    found, binding = described(model)
    assert sizes(binding) == [12]
    assert binding.held == {("qkv.weight", 0), ("proj.weight", 1)}
    assert "qkv: embed -> held" in binding.spec.text
    assert fixed_share(found, binding) - found.fixed_share == pytest.approx(
        (36 + 12) / sum(map(len, found.axes.values()))
    )
    assert review(model, binding, (3, 8, 8)).held == ("proj.weight", "qkv.weight")
    silent = bind(specs.parse(binding.spec.text.replace("held", ".")), model)
    with pytest.raises(SpecError, match=r"qkv.weight axis 0 is fixed in the spec, but free in the model: .* 'held'"):
        same_grouping(found, silent)


class Functional(Unbiased):
    """As in BEiT: the fused projection is not called as a module, so that no module shows queries and keys."""

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        qkv = F.linear(self.norm(x), self.qkv.weight).view(len(x), -1, 3, 3, 4)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT).softmax(-1) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_heads_move_even_if_no_module_shows_their_queries_and_keys():
    model = Functional()
    found, binding = described(model)
    assert "qkv: embed -> (head held) + (head held) + (head qkv)" in binding.spec.text
    assert sorted((space.size, space.groups) for space in binding.spaces.values()) == [(3, 3), (12, 1), (12, 3)]
    assert binding.held == {("qkv.weight", 0)}
    held = fixed_share(found, binding) - found.fixed_share
    assert held == pytest.approx(24 / sum(map(len, found.axes.values())))


class TalkingHeads(Unbiased):
    """As in CaiT: linear layers over the heads, before and after the softmax."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        q, k, v = self.qkv(self.norm(x)).view(len(x), -1, 3, 3, 4).permute(2, 0, 3, 1, 4)
        scores = self.before((q @ k.mT).permute(0, 2, 3, 1)).softmax(-2)
        mixed = self.after(scores).permute(0, 3, 1, 2) @ v
        return self.head((x + self.proj(mixed.transpose(1, 2).flatten(2))).mean(1))


def test_layers_over_the_heads_read_and_write_group_axes():
    _, binding = described(TalkingHeads())
    axes = {name: space.group_axis for name, space in binding.spaces.items() if space.size == 3}
    rows = {(row.parameter, row.axis): row.space for row in binding.table}
    assert set(axes) == {rows["before.weight", 1], rows["before.weight", 0], rows["after.weight", 0]}
    assert axes[rows["after.weight", 0]] == binding.spaces[rows["proj.weight", 1]].group_axis
    assert axes[rows["before.weight", 1]] != axes[rows["after.weight", 0]]
    assert axes[rows["before.weight", 0]] is None


class Widening(nn.Module):
    """As in FastViT: each stage makes two channels from each of its own, and keeps them beside a residual."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(16, 5)
        self.wide = nn.ModuleList(nn.Conv2d(n, 2 * n, 3, padding=1, groups=n) for n in (4, 8))
        self.mix = nn.ModuleList(nn.Sequential(nn.Conv2d(n, 12, 1), nn.ReLU(), nn.Conv2d(12, n, 1)) for n in (8, 16))

    def forward(self, x):
        x = self.stem(x)
        for wide, mix in zip(self.wide, self.mix, strict=True):
            x = wide(x)
            x = x + mix(x)
        return self.head(x.mean((2, 3)))


def test_of_groups_inside_groups_the_outermost_move():
    found, binding = described(Widening())
    assert sizes(binding) == [4, 12, 12]
    assert fixed_share(found, binding) == pytest.approx(3 / sum(map(len, found.axes.values())))  # the image
    assert "head: (x .) -> classes" in binding.spec.text

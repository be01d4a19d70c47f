import pytest
import torch
from torch import nn

from hf_zipit.checks import check_spec
from hf_zipit.errors import SpecError
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.transform.permute import permuted, random_labels, randomise


class Attention(nn.Module):
    """Fused qkv, heads, a tiled readout and a bare token: every form of axis expression."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.embed(pixels.flatten(2).transpose(1, 2)) + self.token
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(torch.cat([x[:, 0], x.mean(1)], -1))


SPEC = """\
family: toy
match: [toy.Net]
stream: x
wire:
  embed: image -> x
  token: [., ., x]
  head: (. x) -> classes
probe:
  x: embed.out
blocks:
- each: block
  sizes: {heads: [heads]}
  wire:
    norm: x
    qkv: x -> (heads qk) + (heads qk) + (heads vo)
    proj: (heads vo) -> x
  probe:
    qk: qkv.out
    vo: proj.in
check:
  toy: 3
"""


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        net = Attention()
        self.embed, self.token, self.head = net.embed, net.token, net.head
        del net.embed, net.token, net.head
        self.block = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.block.__dict__.update(embed=self.embed, token=self.token, head=self.head)
        return self.block(pixels)


def test_concatenation_products_tiles_and_bare_parameters():
    model = randomise(Wrapped().double().eval(), 0)
    binding = bind(specs.parse(SPEC), model)
    assert {n: (s.size, s.groups) for n, s in binding.spaces.items()} == {
        "x": (8, 1),
        "block.qk": (8, 2),
        "block.vo": (8, 2),
    }
    assert binding.spaces["block.qk"].group_axis == binding.spaces["block.vo"].group_axis
    rows = [(r.offset, r.length, r.space) for r in binding.table if r.parameter == "block.qkv.bias"]
    assert rows == [(0, 8, "block.qk"), (8, 8, "block.qk"), (16, 8, "block.vo")]
    (tile,) = [r for r in binding.table if r.parameter == "head.weight"]
    assert tile.role == "read"
    assert tile.before == 2
    assert tile.after == 1
    pixels = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    moved = permuted(model, binding, random_labels(binding, 3))
    torch.testing.assert_close(moved(pixels), model(pixels), rtol=0, atol=1e-12)
    assert not torch.equal(moved.block.qkv.weight, model.block.qkv.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  token: [., ., x]\n", ""), "does not cover token of Wrapped"),
        (("[., ., x]", "[., x]"), r"<spec>:6 \(token\): token has 3 axes, the line describes 2"),
        (("(. x) -> classes", "x -> classes"), "head.weight axis 1 is 16 wide, but space 'x' has 8 units"),
        (("norm: x", "norm: x -> x"), "block.norm is a LayerNorm"),
        (("sizes: {heads: [heads]}", "sizes: {heads: [width]}"), "none of the integer attributes width"),
        (("sizes: {heads: [heads]}\n", "sizes: {other: [heads]}\n"), "the number of 'heads' groups is not given"),
        (("    vo: proj.in\n", ""), "space 'block.vo' has no probe"),
        (("image -> x", "image -> x + x + x"), "axis 0 is 8 wide, which does not fit its parts: x 8, x 8, x 8"),
        (("norm: x", "norm: [., x]"), r"<spec>:14 \(norm\): block.norm is a module: a list of axes is for a parameter"),
        (
            ("embed: image -> x", "embed: other -> x"),
            "<spec>:5: embed.weight reads space 'other', which nothing writes",
        ),
        (("norm: x", "norm: x\n    norm.weight: x"), "block.norm.weight is already wired by line 14"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_naming_line_and_parameter(change, message):
    with pytest.raises(SpecError, match=message):
        bind(specs.parse(SPEC.replace(*change)), Wrapped())


def test_two_group_structures_in_one_space_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(4, 12), nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1))
    text = "family: t\nmatch: [t]\nwire: {'0': image -> a, '1': a, '2': a, '3': a -> classes}\nprobe: {a: '3.in'}\n"
    with pytest.raises(SpecError, match="two group structures"):
        bind(specs.parse(text + "check: {t: 1}\n"), net)


class Rolled(nn.Module):
    """Its second convolution's output channels are not in the order that a plain spec says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(pixels)).roll(1, 1)).mean((2, 3))


def test_a_spec_that_ties_wrong_units_is_caught_naming_the_space():
    net = Rolled()
    text = "family: t\nmatch: [t]\nwire: {a: image -> x, b: x -> y, c: y -> classes}\n"
    text += "probe: {x: b.in, y: b.out}\ncheck: {t: 2}\n"
    with pytest.raises(SpecError, match=r"changes the logits .*wrong or incomplete: y"):
        check_spec(net, bind(specs.parse(text), net), (3, 4, 4))


class Stack(nn.Module):
    """Blocks with a token, a table that every block reads, and a second module beside the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Conv2d(3, 8, 1), nn.Dropout()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.body = nn.Module()
        self.body.table = nn.Parameter(torch.zeros(1, 1, 1))
        self.body.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.body.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.embed(pixels).flatten(2).transpose(1, 2) + self.token)
        for block in self.body.blocks:
            x = block(x + self.body.table)
        return self.head(self.body.norm(x.mean(1)))


PARTS = """\
family: toy
match: [toy.Stack]
chain: [embed, drop(token) -> x, "body.blocks.{i}(body.table)", call:forward(body.table)]
stream: x
wire:
  embed: image -> x
  token: [., ., x]
  body.table: [., ., .]
  body.norm: last
  head: last -> classes
probe: {x: embed.out, last: head.in}
blocks:
- each: body.blocks.{i}
  wire: {.: in -> out}
  probe: {out: block.out}
check: {toy: 4}
"""


def test_the_last_part_owns_what_no_other_part_names():
    binding = bind(specs.parse(PARTS.replace(", call:forward(body.table)", ", call:forward")), Stack())
    assert binding.owns == {
        "embed": ("embed",),
        "drop": ("token", "drop"),
        **{f"body.blocks.{i}": ("body.table", f"body.blocks.{i}") for i in range(3)},
        "call:forward": ("body.norm", "head"),
    }


def test_a_part_shows_the_space_that_its_module_writes():
    binding = bind(specs.parse(PARTS), Stack())
    spaces = [binding.after[step] for step in binding.steps]
    assert spaces == ["x", "x", "body.blocks.0.out", "body.blocks.1.out", "body.blocks.2.out", None]
    assert check_spec(Stack(), binding, (3, 4, 4)).cuts == 5


@pytest.mark.parametrize(("named", "forgotten"), [("drop(token)", "drop"), ("{i}(body.table)", "{i}")])
def test_a_part_that_does_not_name_a_parameter_that_it_needs_is_refused(named, forgotten):
    binding = bind(specs.parse(PARTS.replace(named, forgotten)), Stack())
    with pytest.raises(SpecError, match=r"steps of chain: do not compose to the model"):
        check_spec(Stack(), binding, (3, 4, 4))


@pytest.mark.parametrize(("skip", "count"), [(True, 1), (False, 2)])
def test_two_names_can_mean_one_space_where_an_attribute_is_true(skip, count):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    net[1].has = nn.Module()
    net[1].has.skip = skip
    text = """
family: toy
match: [toy]
stream: x
wire: {"0": image -> x, "2": last -> classes}
probe: {x: "0.out", last: "2.in"}
blocks:
- each: "{i}"
  when: Residual
  wire: {.: in -> out}
  same: in = out if has.skip
check: {toy: 1}
"""
    net[1].__class__ = type("Residual", (nn.Conv2d,), {})
    assert len(bind(specs.parse(text), net).spaces) == count

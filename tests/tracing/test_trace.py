"""The tracer: same grouping as the declared specs, logits kept, specs that bind, legal cuts, clear refusals."""

import copy

import pytest
import timm
import torch
import transformers
from torch import nn

import hf_zipit.models.cifar_resnet  # noqa: F401  (registers cifar_resnet20)
from hf_zipit.errors import SpecError, TraceError
from hf_zipit.find_spec import describe
from hf_zipit.specs import parser as specs
from hf_zipit.specs.binding import bind
from hf_zipit.tracing.check import difference, random_order, same_grouping, tally
from hf_zipit.tracing.cuts import chain_of
from hf_zipit.tracing.fold import chain_patterns, patterns
from hf_zipit.tracing.parts import parts_of, why_whole
from hf_zipit.tracing.tracer import trace
from hf_zipit.tracing.writer import write_spec

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
MLP = {**TINY, "intermediate_size": 64}
SLOW = pytest.mark.slow


def case(name, size, spaces, slow=False, **kwargs):
    return pytest.param(name, kwargs, size, spaces, id=name, marks=[SLOW] if slow else [])


DECLARED = [
    case("resnet18", 32, 12),
    case("cifar_resnet20", 32, 12),
    case("resnext50_32x4d", 32, 37, slow=True),
    case("resnet50_gn", 32, 37, slow=True),
    case("resnet50", 64, 37, slow=True),
    case("resnet50d", 64, 39, slow=True),
    case("seresnet50", 64, 53, slow=True),
    case("resnetblur50", 64, 37, slow=True),
]
OTHERS = [
    case("mobilenetv3_small_100", 64, 27),
    case("eva02_tiny_patch14_224", 56, 10, img_size=56, depth=3),
    case("ViTForImageClassification", 32, 10, **MLP),
    case("DeiTForImageClassificationWithTeacher", 32, 10, **MLP),
    case("Dinov2ForImageClassification", 32, 10, **TINY, mlp_ratio=2, use_swiglu_ffn=True),
    case("Dinov2WithRegistersForImageClassification", 32, 10, **TINY, mlp_ratio=2),
    case("DINOv3ViTModel", 32, 9, **MLP),
    case("BeitForImageClassification", 32, 13, **MLP, use_relative_position_bias=True),
    case("SwinForImageClassification", 32, 18, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4,
         image_size=32, patch_size=2),
    case("SegformerForImageClassification", 64, 19, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1],
         num_attention_heads=[1, 2, 4, 8]),
    case("ConvNextForImageClassification", 64, 9, hidden_sizes=[8, 16, 24, 32], depths=[1, 2, 1, 1]),
    case("ResNetForImageClassification", 64, 12, embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    *(case(name, 64, spaces, slow=True) for name, spaces in {
        "densenet121": 120, "efficientnet_b0": 40, "regnetx_002": 31, "poolformer_s12": 16, "pvt_v2_b0": 34,
        "mobilevit_xxs": 52, "xcit_nano_12_p16_224": 58, "res2net50_26w_4s": 93, "skresnet18": 24, "dpn48b": 57,
        "repvgg_a0": 5, "hrnet_w18_small": 45, "convnext_atto": 16, "convnextv2_atto": 16, "resnetv2_50x1_bit": 37,
        "vgg11_bn": 10,
    }.items()),
    case("deit3_small_patch16_224", 64, 37, slow=True, img_size=64),
    case("vit_tiny_r_s16_p8_224", 64, 38, slow=True, img_size=64),
    case("vit_tiny_patch16_224", 64, 37, slow=True, img_size=64),
    case("vit_small_patch14_dinov2", 56, 37, slow=True, img_size=56),
    case("swin_tiny_patch4_window7_224", 112, 52, slow=True, img_size=112),
]  # fmt: skip

PARTLY = [  # spaces that no module shows alone: the written spec leaves them fixed
    case("SiglipVisionModel", 32, 12, **MLP),
    case("mixer_s32_224", 224, 17, slow=True),
]


def slow(param):
    return pytest.param(*param.values, id=param.id, marks=[SLOW])


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def build(name, kwargs):
    if timm.is_model(name):
        return timm.create_model(name, num_classes=5, **kwargs)
    cls = getattr(transformers, name)
    return cls(cls.config_class(**kwargs))


@pytest.mark.parametrize(("name", "kwargs", "size", "spaces"), DECLARED)
def test_same_grouping_as_the_declared_spec(name, kwargs, size, spaces):
    model = build(name, kwargs)
    found = trace(model, torch.zeros(1, 3, size, size))
    same_grouping(found, bind(specs.read(specs.folder() / "timm_resnet.yaml"), model))
    assert len(found.spaces) == spaces
    assert found.fixed_share < 1e-3


@pytest.mark.parametrize(
    ("name", "kwargs", "size", "spaces"), [*DECLARED[:2], *map(slow, DECLARED[2:]), *OTHERS, *PARTLY]
)
@pytest.mark.sample(5)
def test_traced_units_move_without_changing_the_logits(name, kwargs, size, spaces):
    model = build(name, kwargs)
    before = copy.deepcopy(model.state_dict())
    pixels = torch.zeros(1, 3, size, size)
    found = trace(model, pixels)
    assert len(found.spaces) == spaces
    assert sum(k != v for k, v in random_order(found, 0).items()) > 100
    moved, scale = difference(model, found, pixels)
    assert moved <= 1e-9 * max(1.0, scale)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kwargs", "size", "spaces"), [*DECLARED[:2], *map(slow, DECLARED[2:]), *OTHERS])
@pytest.mark.sample(4)
def test_written_spec_passes_the_checks_and_says_what_the_trace_says(name, kwargs, size, spaces):
    model = build(name, kwargs)
    pixels = torch.zeros(1, 3, size, size)
    text = describe(model, pixels, "traced")
    binding = bind(specs.parse(text), model)
    same_grouping(trace(model, pixels), binding)
    assert len(binding.spaces) == spaces
    assert not binding.unmatched
    assert specs.parse(text).check == {"traced": spaces}
    assert all(len(line) <= 120 for line in text.splitlines() if "match:" not in line and len(line.split()) > 1)


@pytest.mark.parametrize(("name", "kwargs", "size", "spaces"), PARTLY)
def test_spaces_that_cannot_be_observed_are_left_fixed(name, kwargs, size, spaces):
    model = build(name, kwargs)
    text = describe(model, torch.zeros(1, 3, size, size), "traced")
    assert "spaces are left fixed: they are not observable, or not in the grammar" in text
    assert 5 < len(bind(specs.parse(text), model).spaces) < spaces


def test_written_spec_is_folded_and_readable():
    model = build("ViTForImageClassification", MLP)
    text = write_spec(trace(model, torch.zeros(1, 3, 32, 32)), model, "traced-vit")
    assert "attention.q_proj: x -> (head qk)" in text
    assert "attention.o_proj: (head vo) -> x" in text
    assert "vit.embeddings.cls_token: [., ., x]" in text
    assert "- each: vit.layers.{i}" in text
    assert len(text.splitlines()) < 40
    model = build("cifar_resnet20", {})
    text = describe(model, torch.zeros(1, 3, 32, 32), "traced-resnet")
    assert 'chain: [conv1, bn1, act1, "layer{i}.{j}", global_pool, fc]' in text
    assert "conv1: image -> stem" in text
    assert "downsample.0: in -> out" in text
    assert len(text.splitlines()) < 40


def test_fused_attention_is_written_with_its_parts():
    model = build("vit_tiny_patch16_224", {"img_size": 32, "depth": 2})
    text = write_spec(trace(model, torch.zeros(1, 3, 32, 32)), model, "traced")
    assert "attn.qkv: x -> (head qk) + (head qk) + (head vo)" in text
    assert "head: attn.num_heads" in text


def test_unlike_parts_of_a_concatenation_take_the_sizes_of_other_lines():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.b = nn.Conv2d(8, 4, 1)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            x = self.a(x).relu()
            return self.head(torch.cat([x, self.b(x)], 1).mean((2, 3)))

    model = Dense()
    text = describe(model, torch.zeros(1, 3, 8, 8), "dense")
    assert "head: a + b -> classes" in text
    assert "a: [a" not in text
    assert {name: space.size for name, space in bind(specs.parse(text), model).spaces.items()} == {"a": 8, "b": 4}


def test_spaces_that_the_spec_ties_or_misses_are_named():
    model = build("resnet18", {})
    found = trace(model, torch.zeros(1, 3, 64, 64))
    text = specs.read(specs.folder() / "timm_resnet.yaml").text
    fixed = text.replace("conv1: in -> mid1", "conv1: in -> .").replace("bn1: mid1", "bn1: .").replace(
        "conv2: mid1 -> mid2        #", "conv2: . -> mid2 #").replace("    mid1: conv2.in\n", "")  # fmt: skip
    with pytest.raises(SpecError, match=r"layer1\.0\.conv1\.weight axis 0 is fixed in the spec, but free"):
        same_grouping(found, bind(specs.parse(fixed), model))
    tied = text.replace("fc: last -> classes", "fc: last -> classes").replace(
        "conv1: in -> mid1", "conv1: in -> mid2").replace("bn1: mid1", "bn1: mid2").replace(
        "conv2: mid1 -> mid2", "conv2: mid2 -> mid2").replace("    mid1: conv2.in\n", "")  # fmt: skip
    with pytest.raises(SpecError, match="ties units"):
        same_grouping(found, bind(specs.parse(tied), model))


def test_an_op_without_a_rule_freezes_what_enters_it_and_is_named():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(12, 8), nn.Linear(8, 8)
            self.c = nn.Linear(8, 5)

        def forward(self, x):
            return self.c(self.b(self.a(x.flatten(1)).relu()).sort(-1).values)

    model, pixels = Sorted(), torch.zeros(1, 3, 2, 2)
    found = trace(model, pixels)
    assert "sort in the model" in tally(found)
    assert 0.5 < found.fixed_share < 0.6
    assert [space.size for space in found.spaces] == [8]
    assert difference(model, found, pixels)[0] < 1e-12


def test_unused_parameters_are_listed_and_stay():
    model = build("Dinov2ForImageClassification", {**TINY, "mlp_ratio": 2})
    found = trace(model, torch.zeros(1, 3, 32, 32))
    assert found.unused == ("dinov2.embeddings.mask_token",)


def test_models_that_do_not_run_on_the_image_are_refused():
    with pytest.raises(TraceError, match=r"VisionTransformer does not run on an image \[1, 3, 20, 20\]"):
        trace(build("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}), torch.zeros(1, 3, 20, 20))
    with pytest.raises(TraceError, match="does not run"):
        chain_of(nn.Linear(3, 3), torch.zeros(1, 3, 20, 20))

    class Silent(nn.Module):
        def forward(self, x):
            return {"loss": None}

    with pytest.raises(TraceError, match="no tensor"):
        trace(Silent(), torch.zeros(1, 3, 20, 20))


def test_chains_and_parts():
    model = build("resnet18", {})
    pixels = torch.zeros(1, 3, 64, 64)
    binding = bind(specs.read(specs.folder() / "timm_resnet.yaml"), model)
    assert tuple(chain_of(model, pixels)) == binding.steps
    parts = [part.name for part in parts_of(model, pixels, trace(model, pixels))]
    assert {step for step in binding.cuts if "layer" in step} <= set(parts)
    assert "layer1.0.conv1" not in parts
    vit = build("ViTForImageClassification", MLP)
    pixels = torch.zeros(1, 3, 32, 32)
    parts = [part.name for part in parts_of(vit, pixels, trace(vit, pixels))]
    assert [name for name in parts if name.startswith("vit.layers")] == [f"vit.layers.{i}" for i in range(3)]
    assert chain_of(vit, pixels) == []


class Block(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(units, units, 3, padding=1) for _ in "ab")

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


class Stage(nn.Module):
    def __init__(self, units):
        super().__init__()
        self.b1, self.b2 = Block(units), Block(units)

    def forward(self, x):
        return self.b2(self.b1(x))


def test_blocks_whose_names_end_in_numbers_are_steps():
    """Layers that do are none, so that the parts of a block stay together."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Stage(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    pixels = torch.zeros(1, 3, 16, 16)
    assert chain_of(model, pixels) == ["0", "1.b1", "1.b2", "2", "3", "4"]
    assert [part.name for part in parts_of(model, pixels, trace(model, pixels))][:3] == ["0", "1.b1", "1.b2"]


def test_why_a_model_cannot_be_cut_is_said():
    class Twice(nn.Module):
        def __init__(self, turns):
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
            self.turns = turns

        def forward(self, x):
            y = self.body(x)
            z = self.body(x.flip(3)) if self.turns else x.mean()
            return self.fc((y * z).mean((2, 3)))

    pixels = torch.zeros(1, 3, 16, 16)
    for turns in (True, False):
        model = Twice(turns)
        found = trace(model, pixels)
        assert parts_of(model, pixels, found) == []
        assert why_whole(model, pixels, found) == "exactly one tensor is alive after no module but the last"

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(self.body(self.body(x).relu()).mean((2, 3)))

    model = Again()
    assert why_whole(model, pixels, trace(model, pixels)) == "the module body runs several times"


def test_patterns_match_these_modules_and_no_others():
    paths = ["a1.0", "a1.1", "a2.0", "a2.1", "b.0"]
    assert patterns(paths[:4], paths) == ["a{i}.{j}"]
    assert patterns(["a1.0", "a2.0"], paths) == ["a{i}.0"]
    assert patterns(["a1.1", "a2.0"], paths) == ["a1.1", "a2.0"]
    assert chain_patterns(["b.0", *paths[:4]], paths) == ["b.0", "a{i}.{j}"]

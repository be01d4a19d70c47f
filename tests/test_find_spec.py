"""A spec file of one's own, given by its path: what is wrong in it is refused naming file, line and parameter."""

from dataclasses import replace

import pytest
import timm
import torch

import hf_zipit
from hf_zipit.errors import SourceError, SpecError
from hf_zipit.find_spec import describe, find_spec, review
from hf_zipit.sources.load import load_source
from hf_zipit.specs.binding import bind
from hf_zipit.specs.parser import folder, list_specs, parse
from hf_zipit.tracing.cuts import check_cuts
from tests.helpers.families import FAMILIES, timm_swin
from tests.helpers.models import images, resnet_spec_binding, timm_vit, tiny

WRITTEN = """\
family: mine
match: [timm.models.vision_transformer.VisionTransformer]
chain:
- patch_embed
- call:_pos_embed(cls_token, pos_embed)
- blocks.{i}
- norm
- call:forward_head(head)
stream: x
wire:
  patch_embed.proj: image -> x
  cls_token: [., ., x]
  pos_embed: [., ., x]
  norm: x
  head: x -> classes
blocks:
- each: blocks.{i}
  sizes: {head: attn.num_heads}
  wire:
    norm1: x
    attn.qkv: x -> (head qk) + (head qk) + (head vo)
    attn.proj: (head vo) -> x
    norm2: x
    mlp.fc1: x -> mlp
    mlp.fc2: mlp -> x
  probe:
    x: norm1.out
    qk: attn.qkv.out
    vo: attn.proj.in
    mlp: mlp.fc2.in
check:
  vit_tiny_patch16_224: 37
"""


def merge(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return hf_zipit.merge([timm_vit(0), timm_vit(1)], images(16), cut="blocks.1", spec=file, tasks=["a", "b"])


def test_it_is_used(tmp_path):
    assert merge(WRITTEN, tmp_path).spec_text == WRITTEN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("wire:\n  patch", "wires:\n  patch"), r"mine\.yaml:10: unknown key 'wires'"),
        (("  norm: x", "  norm: x\n  norm: x"), r"mine\.yaml:15: not valid YAML: the key 'norm' is given twice"),
        (("  norm: x", "  norm: x\n  norms: x"), r"mine\.yaml:15: 'norms' matches nothing in vit_tiny_patch16_224"),
        (
            ("    vo: attn", "    x: head.in\n    vo: attn"),
            r"mine\.yaml:29: not valid YAML: the key 'x' is given twice",
        ),
        (("x: norm1.out", "x: [norm1.out, norm3.out]"), r"mine\.yaml:27: 'norm3' matches nothing"),
        (("    norm2: x\n", ""), r"mine\.yaml does not cover blocks\.0\.norm2\.bias"),
        (("norm2: x", "norm2: mlp"), r"mine\.yaml:\d+: blocks\.0\.mlp\.fc1\.weight axis 0 is 96 wide, but .* 24 units"),
        (("(head qk) + (head qk)", "(head qk) + (head kq)"), "space 'blocks.0.kq' has no probe"),
        (("[., ., x]\n  norm", "[., x, .]\n  norm"), r"mine\.yaml:\d+: pos_embed axis 1 is 17 wide"),
        (("chain:\n- patch_embed\n", "chain:\n"), "step call:_pos_embed cannot run after the steps before it"),
        (("- norm\n", ""), "the steps of chain: do not compose to the model"),
        (("x: norm1.out", "x: mlp.fc1.out"), "probe .*mlp.fc1.out does not show space 'x'"),
    ],
)
def test_what_is_wrong_is_refused_naming_file_line_and_parameter(change, message, tmp_path):
    assert change[0] in WRITTEN
    with pytest.raises(SpecError, match=message):
        merge(WRITTEN.replace(*change), tmp_path)


def test_a_wiring_that_changes_the_function_is_refused(tmp_path):
    """Queries would be permuted otherwise than keys: only running the model shows it."""
    split = WRITTEN.replace("(head qk) + (head qk)", "(head qk) + (head kq)").replace(
        "    qk: attn.qkv.out", "    qk: attn.qkv.out\n    kq: attn.qkv.out"
    )
    with pytest.raises(SpecError, match=r"mine\.yaml: permuting units changes the logits .*blocks\.0\.qk"):
        merge(split, tmp_path)


def test_lines_of_a_shipped_family_may_be_for_other_variants():
    file = folder() / "timm_resnet.yaml"
    hf_zipit.merge([tiny("resnet18"), tiny("resnet18", 1)], images(16), spec=file, tasks=["a", "b"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 2}, r"has a parameter blocks\.2\."),
        ({"num_heads": 3}, r"the feature space blocks\.0\.qk has 24 units in 4 groups and 24 in 3"),
        ({"embed_dim": 32}, "the feature space x has 24 and 32 units, which a layer norm counts"),
        ({"img_size": 64}, r"pos_embed has shape \[1, 17, 24\] and \[1, 65, 24\]"),
        ({"class_token": False, "global_pool": "avg"}, "has a parameter cls_token, .* has none"),
    ],
)
def test_models_of_one_class_that_are_built_differently_are_refused(changes, message):
    with pytest.raises(SourceError, match=message):
        hf_zipit.merge([timm_vit(), timm_vit(**changes)], images(16), tasks=["a", "b"])


@pytest.mark.parametrize(
    ("family", "names", "message"),
    [
        ("hf-dinov2", ("plain", "swiglu"), "their configuration differs in use_swiglu_ffn: False and True"),
        ("hf-beit", ("relative positions", "first token"), "their configuration differs in use_"),
        ("hf-resnet", ("basic", "bottleneck"), "their configuration differs in layer_type: basic and bottleneck"),
    ],
)
def test_variants_of_one_family_are_not_merged_with_each_other(family, names, message):
    models = [FAMILIES[family][name]() for name in names]
    with pytest.raises(SourceError, match=message):
        hf_zipit.merge(models, images(16), tasks=["a", "b"])


class TwoPaths(torch.nn.Module):
    """Its second step gives a tensor while the first one's is still needed."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Conv2d(k, 6, 1) for k in (3, 6, 6))
        self.head = torch.nn.Linear(6, 2)

    def forward(self, x):
        x = self.a(x)
        return self.head((self.b(x).relu() + self.c(x)).mean((2, 3)))


def test_a_review_compares_a_spec_with_the_trace():
    model = TwoPaths()
    text = describe(model, torch.zeros(1, 3, 8, 8), "mine")
    found = review(model, bind(parse(text), model), (3, 8, 8))
    assert found.report.spaces == 2
    assert found.unseen == ()
    assert found.not_traced == ""
    tied = text.replace("b: a -> b", "b: a -> a").replace("c: a -> b", "c: a -> a").replace("head: b", "head: a")
    assert tied != text
    tied = tied.replace("\n  b: head.in", "")
    with pytest.raises(SpecError, match="space 'a' ties units that the model does not tie"):
        review(model, bind(parse(tied), model), (3, 8, 8))


def test_a_cut_inside_a_residual_block_is_refused():
    model = tiny("resnet18")
    binding = resnet_spec_binding(model)
    check_cuts(model, binding, torch.zeros(1, 3, 32, 32))
    inside = {**binding.owns, "layer1.0.conv1": ("layer1.0.conv1",)}
    binding = replace(binding, owns=inside, after={**binding.after, "layer1.0.conv1": "layer1.0.mid1"})
    with pytest.raises(
        SpecError, match=r"after step layer1\.0\.conv1 more than one tensor is alive, so it cannot be cut there"
    ):
        check_cuts(model, binding, torch.zeros(1, 3, 32, 32))


def test_the_new_family_of_the_documentation_is_one_file_that_checks():
    text = (folder() / "README.md").read_text().partition("## A new family")[2]
    spec = parse(text.partition("```yaml\n")[2].partition("```")[0], "convmixer.yaml")
    with torch.device("meta"):
        (described, spaces), *_ = [(timm.create_model(name), count) for name, count in spec.check.items()]
    assert len(bind(spec, described).spaces) == spaces
    cls = timm.models.convmixer.ConvMixer
    assert spec.match == (f"{cls.__module__}.{cls.__qualname__}",)
    model = cls(8, 3, kernel_size=3, patch_size=4, num_classes=5).eval()
    found = review(model, bind(spec, model), (3, 16, 16))
    assert found.report.spaces == 4
    assert found.unseen == ()
    assert found.not_traced == ""
    assert bind(spec, model).cuts == ("stem", "blocks.0", "blocks.1", "blocks.2", "global_pool")


def test_a_traced_model_with_channels_last_can_be_cut():
    model = timm_swin()
    binding = bind(parse(describe(model, torch.zeros(1, 3, 32, 32), "mine")), model)
    assert binding.spec.channels_last
    assert {"patch_embed", "layers.0", "layers.1"} <= set(binding.cuts)


def test_a_line_that_carries_a_space_through_a_mixing_layer_is_refused():
    model = timm.create_model("convnext_nano_ols", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), num_classes=5)
    spec = next(s for s in list_specs() if s.family == "timm-convnext")
    with pytest.raises(SpecError, match=r"stem\.1\): stem\.1 is a Conv2d that mixes its inputs"):
        bind(spec, model)


@pytest.mark.parametrize(("name", "checks"), [("resnet26", 1), ("resnet18", 0)])
def test_architectures_that_a_spec_does_not_name_are_checked_before_use(name, checks, monkeypatch):
    seen = []
    monkeypatch.setattr("hf_zipit.find_spec.check_spec", lambda *args: seen.append(args))
    source = load_source(timm.create_model(name, channels=(8, 8, 8, 8), layers=(1, 1, 1, 1), num_classes=5))
    assert find_spec(source).spec.family == "timm-resnet"
    assert len(seen) == checks
    find_spec(source, checked=False)
    assert len(seen) == checks

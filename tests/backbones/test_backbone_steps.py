"""Backbones whose steps are methods, return more than a tensor, or name their weights otherwise."""

import dataclasses

import pytest
import timm
import torch
import transformers
from torch import nn

import hf_zipit
from hf_zipit.assembly import kinds
from hf_zipit.assembly.multitask import Multitask
from hf_zipit.errors import OptionError
from hf_zipit.merging.merger import Merger
from hf_zipit.models.resume import Precomputed, SingleField, find_step, resume_after, tensor_of, trunk_outputs
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import randomise
from tests.helpers.marks import slow
from tests.helpers.measure import flops
from tests.helpers.models import images
from tests.helpers.wholes import PIXELS, TASKS, answer, shuffled_whole, vit_config

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4}
NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "encoder.layer": "layers",
    "dpt.": "vit.",
}


class Tokens(nn.Module):
    """A decoder that reads every block of a timm ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model("vit_tiny_patch16_224", features_only=True, **SMALL)
        self.head = nn.Conv2d(24, 2, 1)

    def forward(self, x):
        return self.head(sum(self.encoder(x)))


def dpt():
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    neck = {"backbone_out_indices": [0, 1, 2], "neck_hidden_sizes": [8, 12, 16], "fusion_hidden_size": 16}
    config = transformers.DPTConfig(
        **sizes, **neck, image_size=32, patch_size=8, reassemble_factors=[2, 1, 0.5], neck_ignore_stages=[]
    )
    return transformers.DPTForDepthEstimation(config)


def vit_beside_dpt():
    """The backbone of the second has the weights of the first, under names of its own."""
    vit, other = transformers.ViTForImageClassification(vit_config(num_labels=5)), randomise(dpt().eval(), 1)
    vit, state = randomise(vit.eval(), 0), other.state_dict()
    for name in state:
        known = name
        for mine, theirs in NAMES.items():
            known = known.replace(mine, theirs)
        if known in vit.state_dict():
            state[name] = vit.state_dict()[known]
    other.load_state_dict(state)
    other.head.head[4].bias.data.fill_(9.0)  # a depth that is not cut off at 0
    return load_source(vit), other, lambda model: load_source(model)


def timm_beside_features():
    vit = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=5, **SMALL).eval(), 0)
    other = randomise(Tokens().eval(), 1)
    other.encoder.model.load_state_dict(vit.state_dict(), strict=False)
    source = load_source(vit)
    stated = {**source.preprocessing, "input_size": (3, 32, 32)}
    return (
        dataclasses.replace(source, preprocessing=stated),
        other,
        lambda model: hf_zipit.module_source(model, "image-to-image"),
    )


def distilled_beside_plain():
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.DeiTConfig(**sizes, image_size=32, patch_size=8, num_labels=5)
    plain = randomise(transformers.DeiTForImageClassification(config).eval(), 0)
    other = randomise(transformers.DeiTForImageClassificationWithTeacher(config).eval(), 1)
    other.deit.load_state_dict(plain.deit.state_dict())
    return load_source(plain), other, lambda model: load_source(model)


def prediction(output):
    """The tensor in a model's output, whatever its kind."""
    if isinstance(output, torch.Tensor):
        return output
    return next(output[key] for key in ("logits", "predicted_depth", "reconstruction") if key in output)


@pytest.mark.parametrize(
    ("pair", "embedding"),
    [
        (vit_beside_dpt, "vit.embeddings"),
        (timm_beside_features, "_pos_embed"),
        slow(distilled_beside_plain, "deit.embeddings"),
    ],
)
@pytest.mark.sample(1)
def test_every_block_is_a_cut_and_a_permuted_copy_is_recovered(pair, embedding):
    first, other, source_of = pair()
    merger = Merger([first, source_of(shuffled_whole(other))], images(), tasks=TASKS, cache=False)
    assert embedding in merger.parents.binding.cuts
    blocks = [step for step in merger.parents.binding.cuts if step.split(".")[-1].isdigit()]
    assert len(blocks) == 3
    x = PIXELS[:1]
    parents = flops(first.model, x) + flops(other, x)
    for method, cut in [("permute", embedding), ("permute", blocks[0]), ("permute", blocks[2]), ("zip", None)]:
        merged = merger.merge(method=method, cut=cut, calibrate="none")
        out = answer(merged).task_outputs
        for task, model in (("classes", first.model), ("maps", other)):
            expected = prediction(answer(model))
            torch.testing.assert_close(prediction(out[task]), expected, rtol=0, atol=1e-4)
        assert flops(merged, x) == parents - flops(merged.trunk, x)


@pytest.mark.parametrize("pair", [vit_beside_dpt, timm_beside_features])
def test_what_was_given_is_left_untouched(pair):
    first, other, source_of = pair()
    models = [first.model, other]
    before = [{k: v.clone() for k, v in model.state_dict().items()} for model in models]
    merged = hf_zipit.merge([first, source_of(other)], images(8), tasks=TASKS, cache=False)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any("forward" in vars(m) or "_pos_embed" in vars(m) for m in model.modules())


@pytest.mark.slow
def test_methods_and_fields_are_saved(tmp_path, monkeypatch):
    first, other, source_of = vit_beside_dpt()
    pairs = [[first, source_of(other)]]
    vits = [timm_beside_features()[0] for _ in range(2)]
    for vit in vits:
        vit.backbone["model_args"].update(SMALL)
    pairs.append(vits)
    monkeypatch.setattr(kinds, "kind_of", lambda *_: Multitask)  # as beside a model of another class
    for number, sources in enumerate(pairs):
        merged = hf_zipit.merge(sources, images(8), tasks=TASKS, cache=False)
        read = load_merged(saving.save(merged, tmp_path / str(number)))
        for task in TASKS:
            expected = answer(merged, tasks=task).task_outputs[task]
            assert torch.equal(prediction(answer(read, tasks=task).task_outputs[task]), prediction(expected))
    assert "trunk._pos_embed.pos_embed" in read.state_dict()
    assert merged.config.trunk[1] == "_pos_embed"


def test_positions_of_another_number_of_tokens_end_what_can_be_merged():
    plain = timm_beside_features()[0]
    distilled = randomise(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **SMALL).eval(), 1)
    distilled.pretrained_cfg = {**distilled.pretrained_cfg, "input_size": (3, 32, 32), "mean": (0.5,) * 3}
    distilled.pretrained_cfg["std"] = (0.5,) * 3
    merger = Merger([plain, load_source(distilled)], images(8), tasks=TASKS, cache=False)
    assert merger.parents.binding.cuts == ("patch_embed",)
    with pytest.raises(OptionError, match=r"No more can be merged: _pos_embed\.pos_embed has shape \[1, 17, 24\]"):
        merger.merge(method="zip", cut="blocks.0")


def test_a_step_returns_one_tensor():
    x = torch.ones(2)
    assert tensor_of(x)[1] is None
    assert tensor_of((None, x))[1] == 1
    assert tensor_of({"a": None, "b": x, "c": ()})[1] == "b"
    for several in ((x, x), {"a": x, "b": (x,)}, 3):
        with pytest.raises(TypeError, match="does not hold exactly one tensor"):
            tensor_of(several)
    with trunk_outputs([x]):
        assert Precomputed(0)() is x
        assert Precomputed(0, 1)() == (None, x)
        fields = Precomputed(0, "b")()
    assert isinstance(fields, SingleField)
    assert fields.b is fields["b"] is fields[0] is x
    assert fields.a is None


def test_a_method_runs_with_the_weights_beside_it_alone():
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    step = find_step(vit, "_pos_embed")
    assert sorted(step.state_dict()) == ["cls_token", "pos_embed"]
    assert step.pos_embed is vit.pos_embed
    tokens = torch.randn(2, 16, 24)
    expected = vit._pos_embed(tokens)
    assert torch.equal(step(tokens), expected)
    head = resume_after(vit, ["patch_embed", "_pos_embed"])
    assert not {"cls_token", "pos_embed"} & set(head.state_dict())
    with trunk_outputs([tokens, expected]):
        assert torch.equal(head._pos_embed(tokens), expected)

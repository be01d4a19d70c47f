"""Every family that a spec describes: a permuted copy gives the model back, at every cut; merges save and load."""

import pytest
import torch

from hf_zipit.find_spec import find_spec
from hf_zipit.merging.merge import Merger
from hf_zipit.running import logits_of
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.specs.cuts import cut_names
from hf_zipit.transform.permute import permuted, random_labels
from tests.helpers.families import EVA, FAMILIES, SWIN
from tests.helpers.marks import slow, slow_but
from tests.helpers.measure import flops
from tests.helpers.models import images

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
OF_TRANSFORMERS = [family for family in FAMILIES if family.startswith("hf-")]
PERMUTED = [
    (family, name) if i == 0 else slow(family, name)
    for family, models in FAMILIES.items()
    for i, name in enumerate(models)
]
QUICK = ("hf-beit", "hf-swin", "timm-resnetv2", "timm-vgg")  # they differ most from each other
ELSEWHERE = ("timm-resnet", "timm-vit", "hf-vit")  # cut in tests of their own


def with_shuffled_copy(model):
    source = load_source(model)
    binding = find_spec(source)
    other = permuted(model, binding, random_labels(binding, 1))
    return Merger([source, other], images(16), tasks=["a", "b"]), binding


def assert_gives_back(merged, model):
    with torch.no_grad():
        expected = logits_of(model(PIXELS))
        for out in merged(PIXELS).task_logits.values():
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("family", "name"), PERMUTED)
@pytest.mark.sample(5)
def test_a_copy_with_permuted_heads_and_units_gives_the_model_back(family, name):
    model = FAMILIES[family][name]()
    merger, _ = with_shuffled_copy(model)
    for method in ("permute", "zip"):
        assert_gives_back(merger.merge(method=method, calibrate="none"), model)


@pytest.mark.parametrize("family", slow_but(QUICK, (f for f in FAMILIES if f not in ELSEWHERE)))
@pytest.mark.sample(1)
def test_every_cut_gives_the_model_back_and_heads_cost_the_remaining_layers(family):
    model = next(iter(FAMILIES[family].values()))()
    merger, binding = with_shuffled_copy(model)
    whole, costs = flops(model, PIXELS[:1]), []
    for cut in cut_names(binding):
        merged = merger.merge(method="permute", cut=cut, calibrate="none")
        assert_gives_back(merged, model)
        assert flops(merged, PIXELS[:1], tasks="b") == whole, cut
        costs.append(flops(merged, PIXELS[:1]))
    assert costs == sorted(costs, reverse=True)
    assert whole <= costs[-1] < costs[0] < 2 * whole


@pytest.mark.parametrize(
    ("family", "cuts"),
    [
        ("hf-beit", [f"beit.layers.{i}" for i in range(3)]),
        ("hf-clip", [f"vision_model.encoder.layers.{i}" for i in range(3)]),
        ("hf-segformer", [f"segformer.stages.1.blocks.{b}" for b in (0, 1)]),
        ("hf-siglip", [f"vision_model.encoder.layers.{i}" for i in range(3)]),
        ("hf-dinov2", [f"dinov2.encoder.layer.{i}" for i in range(3)]),
        ("hf-deit", [f"deit.layers.{i}" for i in range(3)]),
        ("hf-swin", [f"swin.encoder.layers.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]),
        ("hf-swinv2", [f"swinv2.encoder.layers.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]),
        ("timm-swin", [f"layers.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]),
        ("timm-swinv2", [f"layers.{s}.blocks.{b}" for s in (0, 1) for b in (0, 1)]),
        ("timm-efficientnet", ["blocks.0.0", "blocks.1.0", "blocks.1.1"]),
        ("timm-eva", [f"blocks.{i}" for i in range(3)]),
        ("timm-convnext", ["stages.0.blocks.0", *(f"stages.1.blocks.{b}" for b in (0, 1)), "stages.3.blocks.0"]),
        ("hf-convnext", [f"convnext.encoder.stages.1.layers.{b}" for b in (0, 1)]),
        ("timm-resnetv2", ["stages.0.blocks.0", "stages.0.blocks.1", "stages.1.blocks.0"]),
        ("hf-resnet", [f"resnet.encoder.stages.1.layers.{b}" for b in (0, 1)]),
        ("timm-vgg", [f"features.{i}" for i in range(5)]),
    ],
)
def test_every_block_is_a_cut(family, cuts):
    model = next(iter(FAMILIES[family].values()))()
    assert set(cuts) <= set(find_spec(load_source(model)).cuts)


ARGUMENTS = {
    "timm-eva": EVA,
    "timm-swin": SWIN,
    "timm-swinv2": SWIN,
    "timm-convnext": {"depths": (1, 2, 1, 1), "dims": (8, 12, 16, 24)},
}


@pytest.mark.parametrize("family", slow_but(("hf-swin", "timm-convnext"), [*OF_TRANSFORMERS, *ARGUMENTS]))
@pytest.mark.sample(1)
def test_merges_are_built_again_from_their_config_and_can_be_exported(family, tmp_path):
    """In the middle of the model, so that both parts need what their steps are given."""
    make = list(FAMILIES[family].values())[0 if family in ARGUMENTS else -1]
    sources = [load_source(make(seed=seed), ARGUMENTS.get(family)) for seed in (0, 1)]
    merger = Merger(sources, images(16), tasks=["a", "b"])
    cuts = merger.parents.binding.cuts
    merged = merger.merge(method="zip", cut=cuts[len(cuts) // 2])
    loaded = load_merged(saving.save(merged, tmp_path / "out"))
    with torch.no_grad():
        expected = merged(PIXELS).logits
        torch.testing.assert_close(loaded(PIXELS).logits, expected, rtol=0, atol=1e-5)
        exported = torch.export.export(loaded, (PIXELS,), strict=False).module()
        torch.testing.assert_close(exported(PIXELS).logits, expected, rtol=0, atol=1e-5)

"""Detectors: their first layers are found, matched and merged; decoders, queries and heads stay per task."""

import dataclasses

import pytest
import torch
import transformers

import hf_zipit
from hf_zipit.backbones.share import share
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import permuted, random_labels, randomise
from tests.helpers.detectors import FAMILIES, PICTURES, detr, save_detector, sides, source, yolos
from tests.helpers.marks import slow_but
from tests.helpers.models import images
from tests.helpers.wholes import shuffled_whole, small

LAST = {  # the last step that is shared
    "YOLOS": "vit.layernorm",
    "DETR": "model.input_projection",
    "Deformable DETR": "model.input_proj.2.1",
    "RT-DETR": "model.backbone.model.encoder.stages.3.layers.0",
    "RT-DETR v2": "model.backbone.model.encoder.stages.3.layers.0",
    "D-FINE": "model.backbone.model.encoder.stages.3.blocks.0",
}


def outputs(model, pixels, **kwargs):
    with torch.no_grad():
        return model(pixels, **kwargs)


def distance(a, b):
    """The mean squared distance of the logits; before queries are chosen, if they are."""
    name = "enc_outputs_class" if b.get("enc_outputs_class") is not None else "logits"
    return float((a[name] - b[name]).square().mean())


def shuffled(given):
    """A copy whose units are permuted in all spaces but those that the decoder reads: the same function."""
    shared = share([given])
    read = {space for _, space, _, _ in shared.taps(0, len(shared.binding.steps))}
    labels = {name: x for name, x in random_labels(shared.binding, 1).items() if name not in read}
    state = permuted(shared.sources[0].model, shared.binding, labels).state_dict()
    copy = dataclasses.replace(given, model=type(given.model)(given.model.config).eval())
    copy.model.load_state_dict(given.model.state_dict() | state)
    return copy


@pytest.mark.parametrize("name", slow_but({"YOLOS", "DETR"}, FAMILIES))
def test_a_permuted_copy_gives_its_model_back_at_any_cut(name):
    first = source(name, 0)
    other = shuffled(first)
    data = images(8, sides(name))
    merger = Merger([first, other], data, tasks=["a", "b"], cache=False)
    cuts = merger.parents.binding.cuts
    assert cuts[-1] == LAST[name]
    expected = outputs(first.model, data[0])
    for cut in (None, cuts[len(cuts) // 2]):
        merged = merger.merge(method="permute", cut=cut, calibrate="none")
        for found in outputs(merged, data[0]).task_outputs.values():
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, rtol=1e-4, atol=1e-4)


def test_a_yolos_with_another_order_of_its_stream_is_recovered():
    first = source("YOLOS", 0)
    other = dataclasses.replace(first, model=shuffled_whole(first.model))
    data = images(8)
    merged = Merger([first, other], data, tasks=["a", "b"], cache=False).merge(method="permute", calibrate="none")
    for task, parent in zip("ab", (first, other), strict=True):
        found = outputs(merged, data[0]).task_outputs[task]
        torch.testing.assert_close(found.pred_boxes, outputs(parent.model, data[0]).pred_boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_but({"YOLOS"}, FAMILIES))
def test_the_trunk_of_one_parent_leaves_it_as_it_is_and_a_refit_helps_the_other(name):
    sources = [source(name, 0, labels=3), source(name, 1, labels=2)]
    data = images(16, sides(name))
    merger = Merger(sources, data, tasks=["a", "b"], cache=False)
    far = []
    for calibrate in ("none", "refit"):
        found = outputs(merger.merge(method="first-parent", calibrate=calibrate), data[0]).task_outputs
        own, other = (outputs(one.model, data[0]) for one in sources)
        torch.testing.assert_close(found["a"].pred_boxes, own.pred_boxes, rtol=1e-3, atol=1e-3)
        far.append(distance(found["b"], other))
    assert far[1] < far[0] / 2


def test_layers_with_two_names_stay_one(tmp_path):
    sources = [source("Deformable DETR", seed) for seed in (0, 1)]
    merged = hf_zipit.merge(sources, images(4, 64), method="average", calibrate="none", tasks=["a", "b"], cache=False)
    head = merged.heads[1]
    assert head.class_embed[0].weight is head.class_embed[1].weight
    hf_zipit.save(merged, tmp_path / "merged")
    again = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "merged").heads[1]
    assert again.class_embed[0].weight is again.class_embed[1].weight
    torch.testing.assert_close(again.class_embed[0].weight, head.class_embed[0].weight)


def test_between_layers_that_add_positions_there_is_no_cut():
    """YOLOS may add positions between its layers, in code that no layer runs."""
    merger = Merger([small(lambda: yolos(use_mid_position_embeddings=True), s, 32) for s in (0, 1)], images(4))
    assert merger.parents.binding.cuts == ("vit.embeddings",)
    with pytest.raises(OptionError, match=r"unknown cut 'vit.encoder.layer.1'.*no step after vit.embeddings"):
        merger.merge(cut="vit.encoder.layer.1")


def test_detectors_whose_boxes_are_made_in_different_ways_are_refused(tmp_path):
    processors = [transformers.DetrImageProcessor, transformers.ConditionalDetrImageProcessor]
    size = {"size": {"height": 64, "width": 64}, "do_pad": False}
    folders = [
        save_detector(tmp_path, n, i, detr, p(**size)) for i, (n, p) in enumerate(zip("ab", processors, strict=True))
    ]
    with pytest.raises(
        SourceError, match=r"in different ways \(DetrImageProcessor and ConditionalDetrImageProcessor\)"
    ):
        hf_zipit.merge(folders, images(4, 64), cache=False)


def test_a_detector_and_a_model_without_a_common_layer_are_refused():
    with pytest.raises(SourceError, match="have no backbone in common"):
        share([source("YOLOS", 0), source("DETR", 0)])


def test_images_are_read_in_one_size_where_a_processor_keeps_their_proportions(tmp_path):
    processor = transformers.YolosImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    opened = load_source(save_detector(tmp_path, "a", 0, yolos, processor))
    assert opened.kind == "object-detection"
    assert opened.labels == ["cat", "dog", "cow"]
    assert opened.input_size == (3, 32, 32)
    assert opened.transform(PICTURES[0].resize((96, 40))).shape == (3, 32, 32)


class Detector(torch.nn.Module):
    """A detector of no library, with a backbone of convolutions."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3, 2, 1), torch.nn.BatchNorm2d(12), torch.nn.ReLU())
        self.body = torch.nn.Sequential(torch.nn.Conv2d(12, 16, 3, 2, 1), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        self.heads = torch.nn.ModuleDict({"logits": torch.nn.Conv2d(16, 4, 1), "pred_boxes": torch.nn.Conv2d(16, 4, 1)})

    def forward(self, pixels):
        maps = self.body(self.stem(pixels))
        return {name: head(maps).flatten(2).mT.sigmoid() for name, head in self.heads.items()}


def test_a_module_in_memory_is_a_detector_too():
    models = [randomise(Detector().eval(), seed) for seed in (0, 1)]
    size = (3, 32, 32)
    sources = [
        hf_zipit.module_source(m, "object-detection", name=n, input_size=size)
        for m, n in zip(models, "ab", strict=True)
    ]
    merger = Merger(sources, images(8), cache=False)
    found = outputs(merger.merge(method="last-parent", cut="body.2", calibrate="none"), images(8)[0]).task_outputs["b"]
    torch.testing.assert_close(found["pred_boxes"], outputs(models[1], images(8)[0])["pred_boxes"])


def test_large_images_are_not_needed_to_find_the_layers(monkeypatch):
    monkeypatch.setattr("hf_zipit.backbones.share.PROBED", 32)
    large = dataclasses.replace(source("YOLOS", 0), preprocessing={"input_size": (3, 48, 64)})
    other = dataclasses.replace(source("YOLOS", 1), preprocessing={"input_size": (3, 48, 48)})
    shared = share([large, large])
    assert shared.wholes[0].input_size == shared.sources[1].input_size == (3, 48, 64)
    assert shared.binding.cuts[-1] == LAST["YOLOS"]
    with pytest.raises(SourceError, match="differs in input_size: 48 x 64 and 48 x 48"):
        share([large, other])

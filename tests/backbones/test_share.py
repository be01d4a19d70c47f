"""Models of several classes that hold one backbone: found, merged as far as they are alike, run, saved."""

import copy
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModel

import hf_zipit
from hf_zipit.assembly.multitask import Multitask
from hf_zipit.backbones.prefix import find_prefix
from hf_zipit.backbones.share import share
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.load import load_source
from hf_zipit.transform.permute import randomise
from tests.helpers.marks import slow_but
from tests.helpers.measure import flops
from tests.helpers.models import hf_vit, images, tiny
from tests.helpers.wholes import (
    NARROW,
    PAIRS,
    PIXELS,
    TASKS,
    answer,
    pyramid,
    resnet_config,
    shuffled_whole,
    small,
    unet,
    whole,
)


@pytest.fixture(scope="module")
def pair():
    """A classifier, a model of another class around a permuted copy of its layers, and that one before it was."""
    classifier, maps = tiny("resnet18"), pyramid()
    maps.encoder.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")})
    return classifier, shuffled_whole(maps), maps


@pytest.fixture(scope="module")
def merger(pair):
    return Merger([pair[0], whole(pair[1])], images(), tasks=TASKS, cache=False)


@pytest.mark.parametrize("method", ["permute", "zip"])
@pytest.mark.slow
def test_a_permuted_copy_inside_another_model_class_is_recovered(pair, merger, method):
    classifier, _, maps = pair
    assert merger.parents.binding.cuts[-1] == "layer4.0"
    for cut in [None, *merger.parents.binding.cuts]:
        out = answer(merger.merge(method=method, cut=cut, calibrate="none")).task_outputs
        torch.testing.assert_close(out["classes"].logits, answer(classifier), rtol=0, atol=1e-4)
        torch.testing.assert_close(out["maps"].reconstruction, answer(maps), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_trunk_and_what_surrounds_it_are_refit(pair, merger):
    """Nothing changes for permuted copies; else every task comes closer to its own model, decoder included."""
    (classifier, _, maps), cut = pair, "layer2.0"
    out = answer(merger.merge(method="permute", cut=cut, calibrate="refit")).task_outputs
    torch.testing.assert_close(out["classes"].logits, answer(classifier), rtol=0, atol=1e-3)
    torch.testing.assert_close(out["maps"].reconstruction, answer(maps), rtol=0, atol=1e-3)
    other, pixels = pyramid(3), torch.cat(images())
    different = Merger([classifier, whole(other)], images(), tasks=TASKS, cache=False)
    plain, heads, fitted = (different.merge(cut=cut, calibrate=c) for c in ("batchnorm", "refit-heads", "refit"))
    errors = []
    for merged in (plain, heads, fitted):
        out = answer(merged, pixels).task_outputs
        rest = [out["classes"].logits - answer(classifier, pixels), out["maps"].reconstruction - answer(other, pixels)]
        errors.append([float(value.square().mean()) for value in rest])
    assert all(a > 2 * max(b, c) for a, b, c in zip(*errors, strict=True)), errors
    assert all(torch.equal(v, heads.trunk.state_dict()[name]) for name, v in plain.trunk.state_dict().items())
    with pytest.raises(OptionError, match="refit-joint needs classifiers only, each for one class"):
        different.merge(cut=cut, calibrate="refit-joint")


def test_every_cut_costs_exactly_trunk_and_heads(pair, merger):
    classifier, shuffled, _ = pair
    x = PIXELS[:1]
    parents = flops(classifier, x), flops(shuffled, x)
    several = 0
    for depth, cut in enumerate(merger.parents.binding.cuts, 1):
        merged = merger.merge(method="average", cut=cut, calibrate="none")
        trunk = flops(merged.trunk, x)
        assert flops(merged, x) == sum(parents) - trunk
        assert flops(merged, x, tasks="maps") == parents[1]
        assert flops(merged, x, tasks=["classes"]) == parents[0]
        several += len(merger.parents.shared.taps(1, depth)) > 1
    assert several > 4  # the decoder reads several of the trunk's tensors


def test_each_tensor_is_gathered_by_the_labels_of_its_own_space(pair, merger):
    merged = merger.merge(method="permute", calibrate="none")
    taps = merger.parents.shared.taps(1, len(merger.parents.binding.steps))
    assert [space for _, space, _, _ in taps] == ["stem", *(f"layer{i}.0.out" for i in (1, 2, 3, 4))]
    for step, _, _, size in taps:
        assert sorted(merged.unmerge[1][str(step)].index.tolist()) == list(range(size))


def test_with_the_trunk_of_one_parent_the_other_reads_the_units_at_its_places(pair, merger):
    merged = merger.merge(method="first-parent", calibrate="none")
    torch.testing.assert_close(answer(merged).task_outputs["classes"].logits, answer(pair[0]), rtol=0, atol=1e-5)
    for _, _, _, size in merger.parents.shared.taps(1, len(merger.parents.binding.steps)):
        assert any(torch.equal(tap.index, torch.arange(size)) for tap in merged.unmerge[1].values())


def test_inspecting_a_model_around_a_backbone_shows_every_tensor_that_is_read():
    model = pyramid()
    shared = share([dataclasses.replace(whole(model), preprocessing={"input_size": (3, 32, 32)})])
    cuts = {cut.name: cut for cut in Multitask(shared).cut_costs()}
    last = cuts["encoder.layer4.0"]
    assert len(last.space.split(" + ")) == 5
    assert len(cuts["encoder.conv1"].space.split(" + ")) == 1
    assert last.flops == flops(model, PIXELS[:1])
    assert last.trunk_flops == flops(model.encoder, PIXELS[:1])
    assert last.trunk_parameters == sum(p.numel() for p in model.encoder.parameters())


def test_what_the_decoder_reads_is_known():
    found = find_prefix(pyramid(), PIXELS[:1], inside="encoder")
    names = [step.removeprefix("encoder.") for step in found.steps]
    assert names == ["conv1", "bn1", "act1", "maxpool", "layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    assert [names[i] for i in found.taps(len(names))] == ["act1", "layer1.1", "layer2.0", "layer3.0", "layer4.0"]
    assert [names[i] for i in found.taps(5)] == ["act1", "layer1.0"]


def test_the_sources_are_left_untouched(pair):
    sources = [copy.deepcopy(model).train() for model in pair[:2]]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in sources]
    merged = hf_zipit.merge([sources[0], whole(sources[1])], images(32), tasks=TASKS, cache=False)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    for model, state in zip(sources, before, strict=True):
        assert model.training
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_dilation_is_honoured_after_the_cut_and_refused_before_it():
    classifier = tiny("resnet18")
    dilated = pyramid(output_stride=8)
    merger = Merger([classifier, whole(dilated)], images(32), tasks=TASKS, cache=False)
    assert merger.parents.binding.cuts[-1] == "layer2.0"
    merged = merger.merge(method="zip", cut="layer2.0")
    assert answer(merged).task_outputs["maps"].reconstruction.shape == (2, 4, 32, 32)
    head = merged.heads[1].encoder.layer4[0].conv2
    assert head.dilation == dilated.encoder.layer4[0].conv2.dilation == (4, 4)
    with pytest.raises(OptionError, match=r"unknown cut 'layer3'.*layer3\.0\.conv1 is Conv2d\(.*stride=\(2, 2\)"):
        merger.merge(method="zip", cut="layer3")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"channels": (16, 16, 24, 32)},
            r"have no backbone in common: conv1\.weight|layer1\.0\.conv1\.weight has shape",
        ),
        ({"in_chans": 1}, "does not run on an image"),
    ],
)
def test_backbones_that_only_look_alike_are_refused_naming_the_first_difference(other, message):
    model = pyramid(**other)
    if "channels" in other:
        merger = Merger([tiny("resnet18"), whole(model)], images(16), tasks=TASKS, cache=False)
        with pytest.raises(OptionError, match=message):
            merger.merge(method="zip", cut="layer1.0")
        return
    with pytest.raises(hf_zipit.ZipItError, match=message):
        share([load_source(tiny("resnet18")), whole(model)])


def test_equal_parameters_with_another_function_are_no_common_backbone():
    leaky = pyramid(act_layer=nn.LeakyReLU)
    shared = share([load_source(tiny("resnet18")), whole(leaky)])
    assert shared.binding.cuts == ("conv1", "bn1")
    assert "act1 of resnet18 and encoder.act1 of maps compute different things" in shared.limit
    with pytest.raises(SourceError, match="none of the models says how large its images are"):
        share([whole(leaky), whole(pyramid())])
    with pytest.raises(SourceError, match="unknown kind of task 'magic'"):
        hf_zipit.module_source(leaky, "magic")


class InTraining(nn.Module):
    """A classifier of its own class, with layers that run only in training."""

    def __init__(self, classes, extra):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, classes)
        self.helper = nn.Conv2d(8, 8, 1)
        self.early = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, classes)) if extra else None

    def forward(self, x):
        x = self.bn(self.conv(x)).relu()
        x = x + self.helper(x) if self.training else x
        out = self.fc(self.body(x).relu().mean((2, 3)))
        return (out, self.early(x.mean((2, 3)))) if self.training and self.early else out


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("cut", [None, "conv"])
def test_classifiers_in_memory_are_merged_whatever_they_do_in_training(cut, extra):
    nets = [randomise(InTraining(classes, extra).eval(), classes) for classes in (4, 5)]
    nets[1].conv.load_state_dict(nets[0].conv.state_dict())
    size = (3, 16, 16)
    sources = [
        hf_zipit.module_source(net, "image-classification", name=name, labels=list("vwxyz"[:count]), input_size=size)
        for net, name, count in zip(nets, "ab", (4, 5), strict=True)
    ]
    pixels = torch.randn(2, *size)
    merged = hf_zipit.merge(sources, [pixels.repeat(8, 1, 1, 1)], method="permute", cut=cut, calibrate="none")
    outputs = merged(pixels).task_outputs
    assert [out.logits.shape for out in outputs.values()] == [(2, 4), (2, 5)]
    if cut == "conv":
        with torch.no_grad():
            torch.testing.assert_close(outputs["a"].logits, nets[0](pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(("Depth Anything", "smp Unet"), PAIRS))
@pytest.mark.sample(1)
def test_the_models_of_libraries_keep_their_own_output_and_cost(name):
    first, second = PAIRS[name]
    size = 64 if name in ("UperNet", "smp Unet") else None
    sources = [small(first, 0, size), small(second, 1)]
    channels, height, width = sources[0].input_size
    x = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(1))
    merger = Merger(sources, images(8, height, batch=8), tasks=TASKS, cache=False)
    steps = len(merger.parents.binding.steps)
    assert max(len(merger.parents.shared.taps(k, steps)) for k in (0, 1)) > 1 or name == "masked images"
    for cut in (merger.parents.binding.cuts[0], merger.parents.binding.cuts[-2], None):
        same = copy.deepcopy(merger)
        merged = same.merge(method="average", cut=cut, calibrate="none")
        parents = [flops(source.model, x) for source in sources]
        assert flops(merged, x) == sum(parents) - flops(merged.trunk, x)
        for task, source in zip(TASKS, sources, strict=True):
            mine, theirs = answer(merged, x, tasks=task).task_outputs[task], answer(source.model, x)
            assert isinstance(theirs, torch.Tensor) or type(mine) is type(theirs)


def test_averaging_copies_is_the_identity_for_every_tensor_that_is_read():
    sources = [small(PAIRS["Depth Anything"][0], 0), small(PAIRS["Depth Anything"][1], 1)]
    target = sources[1].model.backbone.encoder.state_dict()
    sources[0].model.dinov2.encoder.load_state_dict(target)
    sources[0].model.dinov2.embeddings.load_state_dict(sources[1].model.backbone.embeddings.state_dict())
    x = PIXELS
    merged = hf_zipit.merge(sources, images(8), method="average", calibrate="none", tasks=TASKS)
    out = answer(merged, x).task_outputs
    torch.testing.assert_close(out["classes"].logits, answer(sources[0].model, x).logits)
    torch.testing.assert_close(out["maps"].predicted_depth, answer(sources[1].model, x).predicted_depth)


READ = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    outputs = model(pixel_values=torch.load(sys.argv[2])).task_outputs
torch.save([outputs["classes"].logits, outputs["maps"].logits], sys.argv[3])
"""


@pytest.mark.slow
def test_a_saved_merge_is_the_same_in_a_new_process(tmp_path):
    classifier = tiny("resnet18")
    classifier.pretrained_cfg = {**classifier.pretrained_cfg, "input_size": (3, 32, 32)}
    source = hf_zipit.load_source(classifier, NARROW)
    sources = [source, randomise(unet().eval(), 1)]
    merged = hf_zipit.merge(sources, images(16), cut="layer2", tasks=TASKS, cache=False)
    folder = saving.save(merged, tmp_path / "merged")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    command = [sys.executable, "-c", READ, str(folder), "pixels.pt", "out.pt"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    expected = answer(merged).task_outputs
    read = torch.load(tmp_path / "out.pt")
    assert torch.equal(read[0], expected["classes"].logits)
    assert torch.equal(read[1], expected["maps"].logits)
    assert torch.equal(answer(load_merged(folder), tasks="maps").task_outputs["maps"].logits, expected["maps"].logits)
    one = AutoModel.from_pretrained(folder, active_task="maps").eval()
    assert torch.equal(answer(one).logits, expected["maps"].logits)


def test_a_merge_of_models_that_no_library_rebuilds_is_not_saved(merger, tmp_path):
    merged = merger.merge(method="average", calibrate="none")
    with pytest.raises(ValueError, match="Pyramid was passed in memory and cannot be rebuilt"):
        saving.save(merged, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_sets_models_apart_is_told_before_their_preprocessing():
    with pytest.raises(
        SourceError, match=r"no backbone in common: vit has no layer like conv1.* is a CifarResNet, vit is a ViT"
    ):
        hf_zipit.merge([tiny("cifar_resnet20"), hf_vit(image_size=64)], images(), tasks=["a", "b"])


def test_an_image_processor_says_how_large_images_are(tmp_path):
    for side in (32, 64):
        transformers.ResNetForImageClassification(resnet_config(num_labels=2)).save_pretrained(tmp_path / f"{side}")
        size = {"height": side, "width": side}
        transformers.ViTImageProcessor(size=size).save_pretrained(tmp_path / f"{side}")
    folders = [str(tmp_path / name) for name in ("32", "64")]
    assert [load_source(folder).input_size for folder in folders] == [(3, 32, 32), (3, 64, 64)]
    for attempt in (hf_zipit.merge, lambda refs, _: plan_merge(Recipe(sources=refs))):
        with pytest.raises(SourceError, match=r"input_size: 32 x 32 and 64 x 64; .*preprocessor_config\.json"):
            attempt(folders, images())


def test_values_of_pixels_must_agree_and_their_cuts_are_told(pair, caplog):
    def read(scale, size=32):
        return lambda image: scale * torch.from_numpy(np.asarray(image.resize((size, size)), np.float32)).movedim(-1, 0)

    def described(model, transform):
        return dataclasses.replace(load_source(model), transform=transform)

    classifier, maps, _ = pair
    with pytest.raises(SourceError, match="their preprocessing gives a pixel different values"):
        share([described(classifier, read(1 / 255)), described(whole(maps), read(1 / 127.5))])
    assert share([described(classifier, read(1 / 255)), described(whole(maps), read(1 / 255, 40))]).binding.cuts
    assert "resize or cut images differently; the merge reads them all as" in caplog.text

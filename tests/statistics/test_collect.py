import json
import os
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch

from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_all
from hf_zipit.errors import DataError
from hf_zipit.find_spec import find_spec
from hf_zipit.sources.load import load_source
from hf_zipit.statistics import collect as collecting
from hf_zipit.statistics.collect import collect
from hf_zipit.statistics.probes import POSITIONS, SAMPLES, TOKENS, samples, spread, tokens_read
from tests.helpers.models import images, resnet_spec_binding, tiny

SCRIPT = """
import json, sys, torch
from tests.statistics.test_collect import gathered
from hf_zipit.data.batches import make_accelerator
torch.set_num_threads(1)
stats = gathered()
if make_accelerator().is_main_process:
    out = {n: [m.count, m.mean.tolist(), m.covariance.tolist()] for n, s in stats.items() for m in [s.moments]}
    json.dump(out, open(sys.argv[1], "w"))
"""


def gathered(compat=False, models=None):
    """Two models, two tasks of different length, and a last batch that is not full."""
    models = models or [tiny("resnet18", seed) for seed in (0, 1)]
    binding = resnet_spec_binding(models[0])
    parts = open_all([images(29, seed=0), images(16, seed=1)], 2, None)
    return collect(
        models,
        binding,
        Passes(parts, 8, "cpu"),
        spaces=binding.spaces,
        names=["a", "b"],
        compat=compat,
    )


def activations(model, module, pixels):
    seen = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(pixels)
    handle.remove()
    return seen[0]


def test_statistics_equal_numpy_over_the_data_of_all_tasks():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    stats = gathered(models=models)
    pixels = torch.cat([*images(29, seed=0), *images(16, seed=1)])
    for space, module in (("layer1.0.mid1", "layer1.0.conv2"), ("layer2.0.out", "layer3.0.downsample")):
        features = torch.cat([activations(m, module, pixels).flatten(2) for m in models], 1).transpose(1, 2)
        features = features.flatten(0, 1).double()
        moments = stats[space].moments
        assert moments.count == len(features)
        np.testing.assert_allclose(moments.covariance, np.cov(features.T, bias=True), rtol=1e-4, atol=1e-5)


def test_how_many_images_are_read_at_a_time_makes_no_difference(monkeypatch):
    whole = gathered()
    monkeypatch.setattr(collecting, "READ", 1)  # one image at a time
    for name, space in gathered().items():
        assert space.moments.count == whole[name].moments.count
        assert torch.allclose(space.moments.covariance, whole[name].moments.covariance, rtol=1e-4, atol=1e-5)


def test_no_more_is_read_at_a_time_than_fits(monkeypatch):
    seen = []
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    for model in models:
        model.conv1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    gathered(models=models)
    assert seen[:2] == [1, 1]  # the first image tells both models how many fit
    assert set(seen[2:]) == {8, 5}
    for compat, sizes in ((False, {1}), (True, {8, 5})):  # the authors' code adds up whole batches
        seen.clear()
        monkeypatch.setattr(collecting, "READ", 1)
        gathered(compat, models)
        assert set(seen) == sizes


def test_no_hook_and_no_change_is_left_on_the_models():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    gathered(models=models)
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """A real accelerate launch with two CPU processes."""
    out = tmp_path / "stats.json"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), str(out)]
    subprocess.run(command, check=True, env=env, capture_output=True, timeout=300)
    two, one = json.loads(out.read_text()), gathered()
    assert list(two) == list(one)
    for name, entry in one.items():
        count, mean, covariance = two[name]
        assert entry.moments.count == count
        np.testing.assert_allclose(mean, entry.moments.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(covariance, entry.moments.covariance, rtol=1e-4, atol=1e-7)


def test_reference_statistics_read_every_position_and_pool_the_tasks():
    stats = gathered(compat=True)
    assert {s.moments.count for s in stats.values()} == {45}


def test_large_maps_are_read_on_an_even_lattice():
    value = torch.arange(2 * 3 * 56 * 56.0).view(2, 3, 56, 56)
    assert samples(value).shape == (2, 56 * 56, 3)
    few = samples(value, POSITIONS)
    assert few.shape == (2, 14 * 14, 3)
    assert torch.equal(few[0, :, 1], value[0, 1, 1::4, 1::4].flatten())
    assert samples(value[:, :, :16, :16], POSITIONS).shape == (2, 256, 3)
    assert samples(value[:, :, 0, 0], POSITIONS).shape == (2, 1, 3)


def test_activations_that_are_not_finite_are_refused_naming_model_and_space():
    models = [tiny("resnet18", seed) for seed in (0, 1)]
    models[1].layer2[0].conv1.weight.data.fill_(float("nan"))
    with pytest.raises(DataError, match=r"b: 16 of 16 units of space 'layer2\.0\.mid1' are NaN"):
        gathered(models=models)


def test_of_long_sequences_as_many_tokens_are_read_as_units_need():
    args = {"img_size": 48, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    models = [timm.create_model("vit_tiny_patch16_224", **args).eval() for _ in range(2)]
    binding = find_spec(load_source(models[0]))
    pixels = torch.randn(6, 3, 48, 48)
    parts = open_all([pixels[:4], pixels[4:]], 2, None)
    hidden = next(name for name, space in binding.spaces.items() if space.size == 64)
    found = collect(models, binding, Passes(parts, 4, "cpu"), spaces=[hidden], names=["a", "b"])[hidden].moments
    seen = torch.cat([activations(model, "blocks.0.mlp.fc2", pixels) for model in models], -1)
    assert tokens_read(128, 6) == -(-SAMPLES * 128 // 6) > 145  # too few images to leave tokens out
    assert found.count == 6 * 145
    many = Passes(open_all([pixels.repeat(4, 1, 1, 1)], 1, None), 4, "cpu")
    found = collect(models, binding, many, spaces=[hidden], names=["a", "b"])[hidden].moments
    read = seen[:, spread(145, TOKENS)].flatten(0, 1)
    assert found.count == 4 * len(read) == 4 * 6 * TOKENS
    np.testing.assert_allclose(found.covariance, np.cov(read.T.double(), bias=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [14, 16, 32, 56, 64, 128])
@pytest.mark.parametrize("first", [0, 1])
def test_the_tokens_that_are_read_lie_all_over_a_square_map(side, first):
    read = spread(side * side + first, TOKENS)
    assert read[0] == 0
    assert 0.9 * TOKENS <= len(read) <= TOKENS
    assert len(read.unique()) == len(read)
    for place in ((read[first:] - first) % side, (read[first:] - first) // side):
        counts = torch.histc(place.float(), bins=7, min=0, max=side)
        assert counts.min() >= len(read) / 7 / 3

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hf_zipit
from hf_zipit.data.batches import Passes
from hf_zipit.data.images import open_images
from hf_zipit.find_spec import find_spec
from hf_zipit.merging.merger import Merger
from hf_zipit.sources.load import load_source
from hf_zipit.statistics import cache
from hf_zipit.statistics.cache import StatisticsCache, cache_folder, clear, entries
from tests.helpers.models import hf_vit, images, tiny

TASKS = ["a", "b"]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ZIPIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def passes(monkeypatch):
    """The labels of all passes over the images that were begun."""
    begun = []
    plain = Passes.__call__

    def counting(self, label):
        begun.append(label)
        return plain(self, label)

    monkeypatch.setattr(Passes, "__call__", counting)
    monkeypatch.setattr(Passes, "groups", counting)
    return begun


def pair(name="cifar_resnet20"):
    return [tiny(name, seed) for seed in (0, 1)]


def merged(models=None, data=None, **options):
    return hf_zipit.merge(
        models or pair(), data or images(32), tasks=TASKS, **{"method": "zip", "calibrate": "batchnorm", **options}
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_second_merge_reads_no_image_for_statistics(passes):
    merged(cut="layer1")
    assert passes == ["Reading activations", "Calibrating"]
    for options in ({"alpha": 0.5}, {"beta": 0.0}, {"method": "permute"}, {"cut": "layer2"}, {"calibrate": "none"}):
        passes.clear()
        merged(**options)
        assert passes == ([] if "calibrate" in options else ["Calibrating"])


@pytest.mark.parametrize("compat", [False, True])
def test_the_result_is_that_of_a_merge_without_cache(compat, passes):
    options = {"compat": compat, "calibrate": "none", "method": "permute" if compat else "zip"}
    plain = merged(**options, cache=False)
    assert not cache_folder().exists()
    assert same(merged(**options), plain)
    passes.clear()
    assert same(merged(**options), plain)
    assert passes == []


def test_without_a_cache_only_the_spaces_of_the_trunk_are_observed(passes):
    merger = Merger(pair(), images(32), tasks=TASKS, cache=False)
    merger.merge(method="zip", cut="layer1", calibrate="none")
    known = set(merger.observations.known[False])
    merger.merge(method="zip", calibrate="none")
    assert known < set(merger.observations.known[False])
    assert passes == ["Reading activations"] * 2


def test_heads_are_read_in_the_pass_over_the_spaces_and_once_for_all_methods(passes):
    merger = Merger([hf_vit(seed) for seed in (0, 1)], images(32), tasks=TASKS)
    first = merger.merge(method="zip", calibrate="none", heads="all")
    assert passes == ["Reading activations"]
    tokens = 32 * 17  # of every image, which counts once
    found = list(merger.observations.heads.values())
    assert [heads.counts.tolist() for heads in found] == [[tokens, tokens], [tokens, tokens], [32, tokens]]
    assert [heads.outputs.count for heads in found] == [tokens, tokens, 32]  # the last block is read at the class token
    merger.merge(method="select", calibrate="none", heads="all")
    assert passes == ["Reading activations"]
    again = Merger([hf_vit(seed) for seed in (0, 1)], images(32), tasks=TASKS)  # the spaces are in the cache
    assert same(again.merge(method="zip", calibrate="none", heads="all"), first)
    assert passes == ["Reading activations"] * 2


def changed(what):
    """A pair and its images of which one thing is not as before."""
    models, data = pair(), images(32)
    if what == "a weight":
        with torch.no_grad():
            models[1].conv1.weight[0, 0, 0, 0] += 1e-3
    elif what == "the order of the models":
        models.reverse()
    elif what == "a pixel":
        data[1][0, 0, 0, 0] += 1e-3
    elif what == "the number of images":
        data = data[:1]
    elif what == "the structure":
        models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
        for model in models:
            model.bn1.eps = 1e-2
    elif what == "a setting that is not shown":
        models[0].scale = 2
    elif what == "a buffer that is never saved":
        models[0].register_buffer("extra", torch.ones(1), persistent=False)
    elif what == "a hook":
        models[0].conv1.register_forward_hook(lambda module, args, out: out * 2)
    elif what == "the forward pass":
        models[0].layer1.forward = lambda x: x
    return models, data


@pytest.mark.parametrize(
    "what",
    [
        *("a weight", "the order of the models", "a pixel", "the number of images", "the structure", "compat"),
        *("a setting that is not shown", "a buffer that is never saved", "a hook", "the forward pass"),
    ],
)
@pytest.mark.sample(4)
def test_other_contents_are_not_taken_for_the_same(what, passes):
    merged(calibrate="none")
    models, data = changed(what)
    merged(models, data, calibrate="none", compat=what == "compat")
    assert passes == ["Reading activations"] * 2


@pytest.mark.slow
def test_other_images_of_one_data_set_are_not_taken_for_the_same(digits, digits_data, passes):
    options = {"tasks": TASKS, "calibrate": "none", "verdict": False}
    hf_zipit.merge(digits, digits_data, num_images=32, **options)
    hf_zipit.merge(digits, digits_data, num_images=32, cut="layer1", **options)
    assert len(passes) == 1
    for other in ({"num_images": 33}, {"num_images": 32, "seed": 1}):
        passes.clear()
        hf_zipit.merge(digits, digits_data, **other, **options)
        assert len(passes) == 1
    passes.clear()
    hf_zipit.merge(digits, f"{digits_data}:test", num_images=32, **options)
    assert len(passes) == 1


def test_a_data_set_that_changed_on_disk_is_another(digits, digits_data, tmp_path):
    transform = load_source(digits[0]).transform
    mine = tmp_path / "mine"
    mine.mkdir()
    file = mine / "train.parquet"
    file.write_bytes((digits_data / "train.parquet").read_bytes())
    first = open_images(mine, transform).fingerprint()
    assert open_images(mine, transform).fingerprint() == first
    file.write_bytes((digits_data / "test.parquet").read_bytes())
    os.utime(file, (1, 1))
    assert open_images(mine, transform).fingerprint() != first


def test_files_that_are_damaged_or_gone_are_made_anew(passes):
    expected = merged(calibrate="none")
    files = sorted(cache_folder().rglob("*.safetensors"))
    assert len(files) == 6
    files[0].write_bytes(files[0].read_bytes()[:-9])
    files[1].unlink()
    whole = files[2].read_bytes()
    files[2].write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])  # a valid file with another value
    save_file({"mean.0": torch.zeros(3)}, files[3])
    files[4].write_bytes(b"")
    assert same(merged(calibrate="none"), expected)
    assert len(passes) == 2
    assert same(merged(calibrate="none"), expected)
    assert len(passes) == 2


def test_a_cache_that_cannot_be_written_costs_only_a_warning(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("HF_ZIPIT_CACHE", str(tmp_path / "file"))
    merged(calibrate="none")
    assert "statistics are not kept" in caplog.text


def test_an_interruption_leaves_no_file_that_is_read(monkeypatch):
    def interrupted(self, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged(calibrate="none")
    assert [path for path in cache_folder().rglob("*") if path.is_file()] == []


def test_groups_and_heads_come_back(passes):
    models = [hf_vit(0), hf_vit(1)]
    one = merged(models, calibrate="none")
    assert same(merged(models, calibrate="none"), one)
    assert len(passes) == 1


def test_what_was_not_used_for_longest_goes_first(monkeypatch):
    for seed in range(3):
        merged(data=images(32, seed=seed), calibrate="none")
        about = sorted(cache_folder().rglob("about.json"), key=lambda path: path.stat().st_mtime)[-1]
        os.utime(about, (time.time() + seed - 100,) * 2)
    assert len(entries()) == 3
    size = entries()[0].size
    assert {entry.size for entry in entries()} == {size}
    merged(data=images(32, seed=0), calibrate="none")  # used again: now the newest
    oldest = entries()[-1].folder
    monkeypatch.setattr(cache, "LIMIT", 3 * size)
    merged(data=images(32, seed=3), calibrate="none")
    assert len(entries()) == 3
    assert not oldest.exists()
    monkeypatch.setattr(cache, "LIMIT", 0)
    merged(data=images(32, seed=4), calibrate="none")
    assert len(entries()) == 1  # what has just been made is kept in any case


def test_entries_and_clear(digits, digits_data):
    assert entries() == []
    hf_zipit.merge(digits, digits_data, num_images=16, tasks=TASKS, calibrate="none")
    (entry,) = entries()
    assert entry.models == tuple(path.name for path in digits)
    assert entry.data == ("digits",)
    assert entry.spaces == 6
    assert clear() == entry.size > 0
    assert entries() == []
    assert clear() == 0


def test_clear_removes_only_what_is_of_the_cache(monkeypatch, tmp_path):
    home = tmp_path / "home" / "statistics"
    (home / "2024").mkdir(parents=True)
    (home / "2024" / "results.safetensors").write_text("mine")
    monkeypatch.setenv("HF_ZIPIT_CACHE", str(tmp_path / "home"))
    merged(calibrate="none")
    (entry,) = entries()
    (entry.folder / "notes.txt").write_text("mine")
    assert clear() == entry.size
    assert {path.name for path in home.rglob("*") if path.is_file()} == {"results.safetensors", "notes.txt"}


def test_an_entry_that_another_machine_removes_is_made_anew(monkeypatch, passes):
    expected = merged(calibrate="none")
    read = Path.read_bytes

    def gone(self):
        shutil.rmtree(self.parent, ignore_errors=True)
        return read(self)

    with monkeypatch.context() as changed:
        changed.setattr(Path, "read_bytes", gone)
        assert same(merged(calibrate="none"), expected)
    assert len(passes) == 2
    assert len(entries()) == 1


def test_an_entry_with_a_damaged_description_is_listed_and_removed():
    merged(calibrate="none")
    (about,) = cache_folder().rglob("about.json")
    for text in ("[]", "{", '{"models": 3}', '{"models": [1], "data": [2]}'):
        about.write_text(text)
        assert len(entries()) == 1
    assert entries()[0].models == ("1",)
    clear()
    assert entries() == []


def test_a_cache_is_shared_under_the_umask():
    before = os.umask(0o002)
    try:
        merged(calibrate="none")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in cache_folder().rglob("*") if path.is_file()} == {0o664}


def test_processes_agree_on_what_is_found(monkeypatch):
    """A space that another process lacks is observed again by all."""
    sources = [load_source(model) for model in pair()]
    binding, passes = find_spec(sources[0]), Passes([open_images(images(32), None)])
    Merger(sources, images(32), tasks=TASKS).merge(calibrate="none")
    stored = StatisticsCache(sources, binding, passes, False)
    spaces = list(binding.spaces.values())
    assert set(stored.read(spaces)) == {space.name for space in spaces}

    class Two:
        num_processes, is_main_process, device = 2, True, torch.device("cpu")

        def reduce(self, flags, reduction):
            assert reduction == "sum"
            return flags + torch.tensor([1] * (len(flags) - 1) + [0])

    stored.accelerator = Two()
    assert set(stored.read(spaces)) == {space.name for space in spaces[:-1]}


def test_the_home_of_the_cache(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_ZIPIT_CACHE")
    assert str(cache_folder()) == os.path.join(constants.HF_HOME, "hf_zipit")


def test_about_names_models_and_data_only():
    merged(calibrate="none")
    (about,) = cache_folder().rglob("about.json")
    assert json.loads(about.read_text()) == {"models": ["cifar_resnet20"] * 2, "data": ["the given batches"]}

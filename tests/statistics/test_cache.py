import json
import os
import time

import pytest
import torch

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
    return begun


def pair(name="cifar_resnet20"):
    return [tiny(name, seed) for seed in (0, 1)]


def merged(models=None, data=None, **options):
    return hf_zipit.merge(models or pair(), data or images(32), tasks=TASKS, **options)


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
    known = set(merger.memo["statistics", False])
    merger.merge(method="zip", calibrate="none")
    assert known < set(merger.memo["statistics", False])
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
    return models, data


@pytest.mark.parametrize(
    "what", ["a weight", "the order of the models", "a pixel", "the number of images", "the structure", "compat"]
)
@pytest.mark.sample(3)
def test_other_contents_are_not_taken_for_the_same(what, passes):
    merged(calibrate="none")
    models, data = changed(what)
    merged(models, data, calibrate="none", compat=what == "compat")
    assert passes == ["Reading activations"] * 2


@pytest.mark.slow
def test_other_images_of_one_data_set_are_not_taken_for_the_same(digits, digits_data, passes):
    options = {"tasks": TASKS, "calibrate": "none"}
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
    def interrupted(tensors, path):
        path.write_bytes(b"begun")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merged(calibrate="none")
    assert [path.name for path in cache_folder().rglob("*") if path.is_file()] == ["about.json"]


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

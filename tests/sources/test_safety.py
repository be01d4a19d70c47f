"""Models from strangers: nothing they bring is run, no name leads out of their folder, no size takes the memory."""

import json
import pickle
import re
import resource
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_zipit
from hf_zipit.errors import OutputError, SourceError
from hf_zipit.merging.dry_run import check_result
from hf_zipit.recipe import Recipe
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import Access
from hf_zipit.sources.faults import redact
from hf_zipit.sources.load import load_source
from tests.helpers.models import hf_vit

WEIGHTS = "model.safetensors"
REFUSED = r"^(?!.*allocat)"  # with a reason, and not by the allocator


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.fixture
def folder(digits, tmp_path):
    return shutil.copytree(digits[0], tmp_path / "model")


@pytest.fixture(scope="module")
def merge_folder(digits, tmp_path_factory):
    merged = hf_zipit.merge(digits, method="average", calibrate="none")
    return saving.save(merged, tmp_path_factory.mktemp("safe") / "merged")


def change(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_malicious_pickle_is_not_run_even_if_pickles_are_allowed(folder, tmp_path):
    (folder / WEIGHTS).unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"conv1.weight": Trap(tmp_path / "run")}, file)
    for access, message in (
        (Access(), "--allow-pickle"),
        (Access(allow_pickle=True), "cannot be read as weights alone"),
    ):
        with pytest.raises(SourceError, match=message):
            load_source(folder, access=access)
    torch.save({"state_dict": {"conv1.weight": 3}}, folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="holds more than named tensors"):
        load_source(folder, access=Access(allow_pickle=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "weights.bin", 3])
def test_an_index_cannot_name_files_elsewhere(folder, name):
    shutil.copy(folder / WEIGHTS, folder.parent / "secret.safetensors")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv1.weight": name}}))
    with pytest.raises(SourceError, match="as a weight file; only safetensors files beside it are read"):
        load_source(folder)


@pytest.mark.parametrize("architecture", ["hf-hub:user/other", "local-dir:/etc", "../resnet18", "resnet18/../x"])
def test_an_architecture_is_a_name_and_not_a_place(folder, merge_folder, tmp_path, architecture):
    change(folder, architecture=architecture)
    with pytest.raises(SourceError, match="it has no such model"):
        load_source(folder)
    merged = shutil.copytree(merge_folder, tmp_path / "merged")
    change(merged, backbone={"library": "timm", "architecture": architecture})
    with pytest.raises(SourceError, match="is not a plain timm model"):
        load_merged(merged)


@pytest.mark.parametrize("argument", ["checkpoint_path", "pretrained", "pretrained_cfg_overlay", "cache_dir"])
def test_the_arguments_of_a_model_cannot_make_it_read_files(folder, merge_folder, tmp_path, argument):
    trap = tmp_path / "trap.bin"
    with trap.open("wb") as file:
        pickle.dump(Trap(tmp_path / "run"), file)
    change(folder, model_args={"depth": 8, argument: str(trap)})
    with pytest.raises(SourceError, match=f"model_args may not hold {argument}"):
        load_source(folder)
    merged = shutil.copytree(merge_folder, tmp_path / "merged")
    backbone = json.loads((merged / "config.json").read_text())["backbone"]
    change(merged, backbone={**backbone, "model_args": {**backbone["model_args"], argument: str(trap)}})
    for read in (load_merged, load_source):
        with pytest.raises(SourceError, match="is not a plain timm model"):
            read(merged)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 10**9},
        {"num_classes": 10**15},
        {"model_args": {"width": 10**6}},
        {"model_args": {"depth": 6 * 10**8 + 2}},
        {"num_classes": -1},
        {"num_classes": "many"},
        {"model_args": [1]},
        {"pretrained_cfg": 3},
        {"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}},
    ],
    ids=str,
)
def test_absurd_configs_are_refused_before_they_take_memory(folder, changes):
    change(folder, **changes)
    with little_memory(), pytest.raises(SourceError, match=REFUSED):
        load_source(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 4 * 10**5},
        {"num_hidden_layers": 10**9},
        {"intermediate_size": 10**9},
        {"image_size": 10**8},
        {"id2label": {str(i): str(i) for i in range(20_000)}},
    ],
    ids=["hidden", "layers", "mlp", "image", "classes"],
)
@pytest.mark.sample(2)
def test_absurd_configs_of_transformers_are_refused(tmp_path, changes):
    from transformers import ViTImageProcessor

    hf_vit().save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    change(tmp_path / "vit", **changes)
    with little_memory(), pytest.raises(SourceError, match=REFUSED):
        load_source(tmp_path / "vit")


@pytest.mark.parametrize(
    "changes", [{"shapes": {"trunk.fc.weight": [10**9, 10**6]}}, {"unmerge": {"size": 10**12, "axis": 1}}]
)
def test_absurd_merges_are_refused(merge_folder, tmp_path, changes):
    merged = shutil.copytree(merge_folder, tmp_path / "merged")
    change(merged, **changes)
    with little_memory(), pytest.raises(SourceError, match=REFUSED):
        load_merged(merged)


class little_memory:
    """An allocation of more than half a GB beyond what the process has now fails at once, touched or not."""

    def __enter__(self):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        self.limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29, self.limits[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_AS, self.limits)


def test_the_limit_of_these_tests_holds():
    with little_memory(), pytest.raises(RuntimeError, match="allocate"):
        torch.empty(2**28)
    torch.empty(2**28)


def test_a_config_that_asks_for_a_million_million_parameters_is_one_message(folder, run):
    change(folder, num_classes=10**12 // 64)  # the classifier alone has more
    with little_memory():
        code, printed, err = run("inspect", folder)
    assert code == 1
    assert printed == ""
    numbers = [int(number) for number in re.findall(r"of more than (\d+) parameters, but its weights hold", err)]
    assert 0.99 * 10**12 < numbers[0] < 1.1 * 10**12
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["[" * 10**5, '{"model_type": "zipit"}', '{"model_type": "zipit", "heads": 3}', "[]", "\x00"]
)
def test_nonsense_in_place_of_a_config_is_refused(merge_folder, tmp_path, text):
    merged = shutil.copytree(merge_folder, tmp_path / "merged")
    (merged / "config.json").write_text(text)
    for read in (load_merged, load_source):
        with pytest.raises(SourceError):
            read(merged)


def test_a_config_of_another_architecture_is_refused(folder, digits, tmp_path):
    change(folder, architecture="resnet18", model_args={})
    with pytest.raises(SourceError, match=r"does not fit its config.json: .*missing"):
        load_source(folder)
    hf_vit().save_pretrained(tmp_path / "vit")
    shutil.copy(digits[0] / WEIGHTS, tmp_path / "vit" / WEIGHTS)
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(SourceError, match=r"does not fit its config.json|cannot load"):
        load_source(tmp_path / "vit")


def test_code_that_comes_with_a_model_is_run_only_if_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    from transformers import ViTImageProcessor

    folder = tmp_path / "custom"
    hf_vit().save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    (folder / "modeling_mine.py").write_text(
        f"open({str(tmp_path / 'run')!r}, 'w')\n"
        "from transformers import ViTConfig, ViTForImageClassification\n"
        "class MyConfig(ViTConfig):\n    model_type = 'mine'\n"
        "class MyModel(ViTForImageClassification):\n    config_class = MyConfig\n"
    )
    auto = {"AutoConfig": "modeling_mine.MyConfig", "AutoModelForImageClassification": "modeling_mine.MyModel"}
    change(folder, model_type="mine", auto_map=auto)
    with pytest.raises(SourceError, match="needs the code files that come with it; read them, then allow them"):
        load_source(folder)
    assert not (tmp_path / "run").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the code of the test leaves its file open
        source = load_source(folder, access=Access(trust_remote_code=True))
        merged = hf_zipit.merge([folder, source], method="average", calibrate="none", trust_remote_code=True)
    assert type(source.model).__name__ == "MyModel"
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(merged(pixels, tasks="custom-1").logits, source.model(pixels).logits)
    with pytest.raises(OutputError, match="the parents' architecture is remote code"):
        saving.save(merged, tmp_path / "merged")
    with pytest.raises(OutputError, match="the parents' architecture is remote code"):  # before the work
        check_result([source, source], Recipe(sources=["a", "b"]), "zipit", None)
    assert (tmp_path / "run").exists()


def test_no_text_shows_a_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop\n")
    for text in ("hf_abcdefghijklmnop", "Bearer some-other-secret", "https://user:secret@host/x", "hf_ABCDEFGHIJ"):
        shown = redact(f"before {text} after")
        assert shown.startswith("before ")
        assert shown.endswith(" after")
        assert "secret" not in shown
        assert "hf_" not in shown
    assert redact("my own secret is bad", "my own secret") == "*** is bad"
    assert redact("hf_zipit reads hf_vit.yaml") == "hf_zipit reads hf_vit.yaml"


def test_two_merges_bring_their_code_twice_without_a_warning(merge_folder):
    import importlib.util

    for number in range(2):
        spec = importlib.util.spec_from_file_location(f"cifar_resnet_{number}", merge_folder / "cifar_resnet.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_weights_are_not_changed_by_reading_them(folder):
    before = load_file(folder / WEIGHTS)
    load_source(folder)
    assert all(torch.equal(value, before[key]) for key, value in load_file(folder / WEIGHTS).items())

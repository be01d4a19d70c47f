"""Class names are held against the classifier when a model is opened, and stay unambiguous in a merge."""

import json
import shutil

import pytest
import torch

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.models.configuration_zipit import ZipItConfig, joint_names
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import NOTHING
from hf_zipit.sources.load import load_source
from hf_zipit.sources.names import class_names
from hf_zipit.sources.outline import outline
from tests.helpers.models import hf_vit, images, tiny
from tests.sources.test_channels import change, processor, timm_folder, vit_folder


@pytest.fixture
def timm_place(tmp_path):
    return timm_folder(tmp_path / "model", 3)


@pytest.fixture
def vit_place(tmp_path):
    return vit_folder(tmp_path / "vit", 3, processor(3))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        ([], ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (["a", "b", "c"], ["a", "b", "c"]),
        ({"2": "c", "0": "a", "1": "b"}, ["a", "b", "c"]),
        ({2: "c", 0: "a", 1: "b"}, ["a", "b", "c"]),
        ([0, 1, 2], ["0", "1", "2"]),
        (["crane", "crane", "heron"], ["crane", "crane", "heron"]),
    ],
    ids=str,
)
def test_names_are_read_in_every_form(given, names):
    assert class_names(given, 3, "config.json: label_names") == names


WRONG = [
    (["cat", "dog"], "has 2 names, but the classifier has 3 outputs; write one name for each"),
    (["a", "b", "c", "d"], "has 4 names, but the classifier has 3 outputs"),
    (
        {"0": "a", "1": "b", "255": "c"},
        "has the ids 0, 1, 255, but the outputs are numbered .* 2 has no name",
    ),
    ({"1": "a", "2": "b", "3": "c"}, "has the ids 1, 2, 3, .* 0 has no name"),
    ({"a": 0, "b": 1, "c": 2}, "has the id 'a'; ids are the numbers of the outputs"),
    ({"0": "a", "00": "b", "1": "c"}, "names the id 0 twice"),
    (["a", None, "c"], "calls class 1 None; a name is a text"),
    (["a", " ", "c"], "calls class 1 ' '"),
    (["a", True, "c"], "calls class 1 True"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=str)
def test_names_that_do_not_fit_are_refused_when_a_timm_model_is_opened(timm_place, given, message):
    change(timm_place / "config.json", label_names=given)
    for read in (load_source, lambda folder: outline(str(folder), NOTHING)):
        with pytest.raises(SourceError, match=rf"config\.json: label_names {message}"):
            read(timm_place)


@pytest.mark.parametrize(("given", "message"), [case for case in WRONG if isinstance(case[0], dict)], ids=str)
def test_ids_with_gaps_are_refused_when_a_transformers_model_is_opened(vit_place, given, message):
    change(vit_place / "config.json", id2label=given)
    for read in (load_source, lambda folder: outline(str(folder), NOTHING)):
        with pytest.raises(SourceError, match=rf"config\.json: id2label {message}"):
            read(vit_place)


def test_modules_in_memory_are_held_against_their_names_too():
    model = tiny("resnet18")
    model.pretrained_cfg["label_names"] = ["a", "b"]
    with pytest.raises(SourceError, match="label_names in the pretrained_cfg of resnet18 has 2 names"):
        load_source(model)
    vit = hf_vit()
    vit.config.id2label = {1: "a", 2: "b", 3: "c", 4: "d", 5: "e"}
    with pytest.raises(SourceError, match=r"id2label in the config of the model has the ids 1, 2, 3, 4, \.\.\., but"):
        load_source(vit)


def test_numbers_as_names_of_transformers_models_become_text(vit_place):
    change(vit_place / "config.json", id2label={str(i): f"{i}" for i in range(5)})
    assert load_source(vit_place).labels == ["0", "1", "2", "3", "4"]


def test_the_names_of_the_first_model_are_not_those_of_a_merge(timm_place, tmp_path):
    other = timm_folder(tmp_path / "other", 3, classes=2, seed=1)
    merged = hf_zipit.merge([timm_place, other], images(16), method="average", calibrate="none", cache=False)
    assert "label_names" not in merged.config.pretrained_cfg


def test_joint_names_are_never_given_twice():
    assert joint_names([("a", "x"), ("b", "y")]) == ["x", "y"]
    assert joint_names([("a", "x"), ("b", "x")]) == ["a/x", "b/x"]
    assert joint_names([("a", "x"), ("a", "x"), ("b", "y")]) == ["a/x#0", "a/x#1", "b/y"]
    hostile = [("a", "x"), ("a", "x"), ("a", "x#0")]
    assert len(set(joint_names(hostile))) == 3


def test_a_name_given_twice_survives_a_merge(timm_place, tmp_path):
    change(timm_place / "config.json", label_names=["crane", "heron", "crane"])
    other = shutil.copytree(timm_place, tmp_path / "other")
    merged = hf_zipit.merge([timm_place, other], images(16), method="average", calibrate="none", cache=False)
    loaded = load_merged(saving.save(merged, tmp_path / "merged"))
    assert len(loaded.config.label2id) == 6
    assert loaded.config.id2label == {i: name for name, i in loaded.config.label2id.items()}
    assert [head["id2label"][2] for head in loaded.config.heads] == ["crane", "crane"]
    alone = ZipItConfig.from_dict({**loaded.config.to_dict(), "active_task": "model"})
    assert alone.label2id == {"model/crane#0": 0, "model/heron": 1, "model/crane#2": 2}


def test_old_configs_with_the_fields_beside_the_architecture_are_read_as_timm_reads_them(timm_place):
    config = json.loads((timm_place / "config.json").read_text())
    flat = {"architecture": "resnet18", "num_classes": 3, "model_args": config["model_args"], "labels": ["a", "b", "c"]}
    flat |= {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "crop_pct": 1.0}
    (timm_place / "config.json").write_text(json.dumps(flat))
    source = load_source(timm_place)
    assert source.labels == ["a", "b", "c"]
    assert source.preprocessing["mean"] == (0.1, 0.2, 0.3)
    assert source.input_size == (3, 32, 32)
    assert torch.isfinite(source.model(torch.zeros(1, 3, 32, 32))).all()

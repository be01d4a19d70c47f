"""A config with any wrong value ends in one message that names the file and the field."""

import json
import random
import shutil

import pytest
from transformers import ViTModel

import hf_zipit
from hf_zipit.errors import SourceError, ZipItError
from hf_zipit.saving import save as saving
from hf_zipit.saving.load import load_merged
from hf_zipit.sources.access import NOTHING
from hf_zipit.sources.load import load_source
from hf_zipit.sources.outline import outline
from hf_zipit.sources.preprocessing import preprocessing_of
from tests.helpers.models import hf_vit, images
from tests.sources.test_channels import change, processor, timm_folder, vit_folder


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of both libraries, and merges of both kinds, by name."""
    root = tmp_path_factory.mktemp("fields")
    timms = [timm_folder(root / f"timm-{i}", 3, seed=i) for i in range(2)]
    vits = [vit_folder(root / f"vit-{i}", 3, processor(3), i) for i in range(2)]
    ViTModel(hf_vit().config).save_pretrained(root / "features")
    shutil.copy(vits[0] / "preprocessor_config.json", root / "features")
    options = {"method": "average", "calibrate": "none", "cache": False}
    merges = {
        "full": hf_zipit.merge(timms, images(16), **options),
        "cut": hf_zipit.merge(timms, images(16), cut="layer2", **options),
        "vits": hf_zipit.merge(vits, images(16), **options),
        "kinds": hf_zipit.merge([vits[0], root / "features"], images(16), **options),
    }
    saved = {name: saving.save(merged, root / name) for name, merged in merges.items()}
    return {"timm": timms[0], "vit": vits[0], **saved}


@pytest.fixture
def copied(places, tmp_path):
    return lambda name: shutil.copytree(places[name], tmp_path / name)


TIMM = [
    ({"num_classes": "many"}, "config.json: num_classes is 'many', not a whole number of at least 0"),
    ({"model_args": [1]}, r"config.json: model_args is \[1\], not a mapping"),
    ({"model_args": {"layers": [1, 1, 1, 10**9]}}, "model_args: layers is .* not a number of layers"),
    ({"model_args": {"in_chans": 0}}, "model_args: in_chans is 0, not a whole number of at least 1"),
    ({"label_names": "cat"}, "config.json: label_names is 'cat', not a list or a mapping"),
    ({"pretrained_cfg": {"input_size": [3, 32]}}, r"pretrained_cfg: input_size is \[3, 32\], not \[channels"),
    ({"pretrained_cfg": {"input_size": [3, 0, 32]}}, "pretrained_cfg: input_size"),
    ({"pretrained_cfg": {"mean": "grey"}}, "pretrained_cfg: mean is 'grey', not a finite number"),
    (
        {"pretrained_cfg": {"mean": [0.1, 0.2]}},
        "mean in pretrained_cfg is .* the model reads 3 channels",
    ),
    ({"pretrained_cfg": {"std": [0.5, 0, 0.5]}}, "pretrained_cfg: std is .* other than 0"),
    ({"pretrained_cfg": {"crop_pct": -1}}, "pretrained_cfg: crop_pct is -1, not a number above 0"),
    ({"pretrained_cfg": {"crop_mode": "left"}}, "pretrained_cfg: crop_mode is 'left', not one of center"),
    ({"pretrained_cfg": {"interpolation": "magic"}}, "pretrained_cfg: interpolation is 'magic', not one of nearest"),
]


@pytest.mark.parametrize(("changes", "message"), TIMM, ids=str)
def test_wrong_values_of_timm_are_named(copied, changes, message):
    folder = copied("timm")
    if isinstance(changes.get("pretrained_cfg"), dict):
        known = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
        changes = {"pretrained_cfg": {**known, **changes["pretrained_cfg"]}}
    change(folder / "config.json", **changes)
    with pytest.raises(SourceError, match=message):
        load_source(folder)


VIT = [
    ("config.json", {"hidden_size": "wide"}, "config.json: hidden_size is 'wide', not a whole number"),
    ("config.json", {"num_hidden_layers": -1}, "config.json: num_hidden_layers is -1, not a number of layers"),
    ("config.json", {"patch_size": 0}, "config.json: patch_size is 0"),
    ("config.json", {"image_size": [10**9, 2]}, "config.json: image_size is .* not a side of 1 to"),
    ("config.json", {"num_labels": 10**12}, "config.json: num_labels is 1000000000000, not a number of classes"),
    ("config.json", {"problem_type": "guess"}, "config.json: problem_type is 'guess', not one of regression"),
    ("config.json", {"id2label": ["a", "b"]}, "config.json: id2label is .* not a mapping of ids"),
    ("config.json", {"hidden_act": [1]}, "transformers cannot load it: Validation error for field 'hidden_act'"),
    ("preprocessor_config.json", {"size": {"height": -3, "width": 32}}, "preprocessor_config.json: size is"),
    ("preprocessor_config.json", {"size": 10**6}, "preprocessor_config.json: size is 1000000, not a side"),
    ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "preprocessor_config.json: image_std is .* other than 0"),
    ("preprocessor_config.json", {"rescale_factor": "half"}, "preprocessor_config.json: rescale_factor is 'half'"),
    ("preprocessor_config.json", {"resample": 9}, "preprocessor_config.json: resample is 9, not a whole number from 0"),
    ("preprocessor_config.json", {"do_resize": "no"}, "preprocessor_config.json: do_resize is 'no', not true or false"),
    ("preprocessor_config.json", {"image_processor_type": "Nope"}, "cannot load its image processor"),
]


@pytest.mark.parametrize(("file", "changes", "message"), VIT, ids=str)
def test_wrong_values_of_transformers_are_named(copied, file, changes, message):
    folder = copied("vit")
    change(folder / file, **changes)
    with pytest.raises(SourceError, match=message):
        load_source(folder)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(("name", "file"), [("timm", "config.json"), ("vit", "preprocessor_config.json")])
def test_numbers_that_are_not_finite_are_refused_in_every_file(copied, name, file, text):
    folder = copied(name)
    (folder / file).write_text((folder / file).read_text().replace("{", f'{{"extra": {text}, ', 1))
    with pytest.raises(SourceError, match=rf"{file} is not valid JSON: .* is not a finite number"):
        load_source(folder)


def test_preprocessing_that_makes_no_numbers_is_refused(copied):
    folder = copied("vit")
    change(folder / "preprocessor_config.json", rescale_factor=1e38, image_std=[1e-38] * 3)
    with pytest.raises(SourceError, match=r"preprocessor_config\.json makes pixels that are not finite numbers"):
        load_source(folder)


MERGES = [
    ("full", {"heads": 3}, "heads is 3, not a list of mappings"),
    ("full", {"heads": [{"id2label": {"0": "a"}}]}, r"heads\[0\] has no task"),
    (
        "full",
        {"heads": [{"task": "a", "id2label": {"1": "x"}, "source": 0}]},
        r"id2label of .* has the ids \[1\], not 0 to 0",
    ),
    ("full", {"heads": [{"task": "a", "id2label": {"0": None}}]}, r"id2label of heads\[0\] is .* ids to names"),
    ("full", {"heads": [{"task": "a", "id2label": {}, "source": 0}] * 2}, "heads name a task twice: a, a"),
    ("full", {"backbone": {"library": 3}}, r"backbone is \{'library': 3\}, not a mapping with a library"),
    ("full", {"shapes": {"trunk.fc.weight": "wide"}}, "shapes is .* not a mapping of names to shapes"),
    ("full", {"active_task": "nope"}, "unknown active_task 'nope'"),
    ("full", {"pretrained_cfg": {"mean": "grey"}}, r"config\.json: pretrained_cfg: mean is 'grey'"),
    ("cut", {"trunk": "conv1"}, "trunk is 'conv1', not a list of the names of steps"),
    ("cut", {"unmerge": {"axis": 1}}, "unmerge is .* not a mapping with an axis and a size"),
    ("cut", {"owns": {"a": "b"}}, "owns is .* not a mapping of steps to lists"),
    ("kinds", {"backbone_path": 3}, "backbone_path is 3, not a text"),
    ("kinds", {"input_size": [3, 32]}, r"input_size is \[3, 32\], not \[channels, height, width\]"),
]


@pytest.mark.parametrize(("name", "changes", "message"), MERGES, ids=str)
def test_a_merge_with_a_damaged_config_is_refused_by_field(copied, name, changes, message):
    folder = copied(name)
    change(folder / "config.json", **changes)
    with pytest.raises(SourceError, match=message):
        load_merged(folder)


def test_a_head_with_more_outputs_than_memory_is_refused(copied):
    folder = copied("kinds")
    heads = json.loads((folder / "config.json").read_text())["heads"]
    heads[0]["model"]["num_classes"] = 10**12
    change(folder / "config.json", heads=heads)
    with pytest.raises(SourceError, match=r"model of heads\[0\] is .* none of them above 10 million"):
        load_merged(folder)


VALUES = [None, 0, -1, 7, 1.5, 10**12, True, "", "x", [], [1], ["a"], [None], {}, {"a": 1}, {"0": "q"}, [[1]]]
FILES = [(name, "config.json") for name in ("timm", "vit", "full", "cut", "vits", "kinds")]
FILES += [(name, "preprocessor_config.json") for name in ("vit", "vits", "kinds")]


def fields(value, path=()):
    """The paths of all values in a config."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, held in inner:
        if key != "zipit":
            yield (*path, key)
            yield from fields(held, (*path, key))


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "file"), FILES)
def test_any_field_may_hold_anything(copied, name, file, count):
    """It is read, or refused in one line."""
    folder = copied(name)
    text = (folder / file).read_text()
    generator = random.Random(f"{name} {file}")
    paths = list(fields(json.loads(text)))
    for path in generator.choices(paths, k=count):
        config = json.loads(text)
        *above, last = path
        place = config
        for key in above:
            place = place[key]
        place[last] = generator.choice(VALUES)
        (folder / file).write_text(json.dumps(config))
        said = refusal(folder, name)
        assert "\n" not in said, (path, place[last])


def refusal(folder, name):
    """The message with which a folder is refused; empty if it is read."""
    try:
        if name in ("timm", "vit"):
            load_source(folder)
            outline(str(folder), NOTHING)
        else:
            preprocessing_of(load_merged(folder))
    except ZipItError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["timm", "vit", "full"])
@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_weight_files_are_refused_in_one_line(copied, name, count):
    folder = copied(name)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    generator = random.Random(name)
    whole = [
        b"",
        data[:7],
        data[: length + 4],
        (2**62).to_bytes(8, "little") + data[8:],
        (2).to_bytes(8, "little") + b"{}",
    ]
    for number in range(count):
        spoiled = bytearray(data)
        for _ in range(3):
            spoiled[generator.randrange(length + 8)] = generator.randrange(256)
        file.write_bytes(whole[number] if number < len(whole) else spoiled)
        said = refusal(folder, name)
        assert said or number >= len(whole), number  # a byte of the metadata may change without harm
        assert "\n" not in said, number

"""ONNX files and programs of torch.export: they compute what the merge does, say what it is, or do not appear."""

import copy
import json
import sys

import onnx
import onnxruntime
import pytest
import torch
import transformers
from transformers import ViTImageProcessor

import hf_zipit
from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.saving import export as exporting
from hf_zipit.saving import onnx_file
from hf_zipit.saving.graph import Graph
from hf_zipit.saving.load import load_merged
from tests.helpers.marks import slow_but
from tests.helpers.models import hf_vit, images, tiny
from tests.helpers.wholes import PAIRS, TASKS, small, vit_config

FORMATS = ("onnx", "torch")
PIXELS = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(5))
AVERAGE = {"method": "average", "calibrate": "none", "cache": False}


@pytest.fixture(scope="module")
def merged(parents):
    return hf_zipit.merge(parents, **AVERAGE)


@pytest.fixture(scope="module")
def partial(parents):
    return hf_zipit.merge(parents, cut="layer2", **AVERAGE)


@pytest.fixture(scope="module")
def little():
    """A merge that is quickly traced."""
    models = [tiny("cifar_resnet20", seed) for seed in (0, 1)]
    return hf_zipit.merge(models, tasks=["pets", "birds"], **AVERAGE)


@pytest.fixture(scope="module")
def files(merged, tmp_path_factory):
    """The full merge in both formats."""
    place = tmp_path_factory.mktemp("files")
    return {format: export(merged, place, format, license="mit") for format in FORMATS}


def export(merged, place, format, **options):
    """Export to a new file."""
    return hf_zipit.export(merged, place / f"out{exporting.SUFFIXES[format]}", format=format, **options)


def outputs(file, pixels=PIXELS):
    """The outputs of an exported file by name, as a user of onnxruntime or torch gets them."""
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(pixels)
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    found = session.run(None, {"pixel_values": pixels.numpy()})
    return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}


def about(file):
    """The metadata of an exported file."""
    if file.suffix == ".pt2":
        files = {"hf_zipit.json": ""}
        torch.export.load(file, extra_files=files)
        return json.loads(files["hf_zipit.json"])
    held = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    return {key.removeprefix("hf_zipit."): json.loads(value) for key, value in held.items()}


def agree(found, expected):
    """That two mappings of tensors have the same keys, in this order, and the same values."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_a_classifier_has_an_output_per_task_and_the_joint_prediction(merged, files, format):
    for count in (1, 2, 5):
        expected = merged(PIXELS[:count])
        agree(outputs(files[format], PIXELS[:count]), {**expected.task_logits, "logits": expected.logits})
    assert {path.name for path in files[format].parent.iterdir()} == {"out.onnx", "out.pt2"}


@pytest.mark.parametrize("format", slow_but(["onnx"], FORMATS))
@torch.no_grad()
def test_a_merge_with_a_cut_runs_the_trunk_once(partial, tmp_path, format):
    file = export(partial, tmp_path, format)
    expected = partial(PIXELS)
    agree(outputs(file), {**expected.task_logits, "logits": expected.logits})
    if format == "onnx":
        convolutions = [node for node in onnx.load(file).graph.node if node.op_type == "Conv"]
        shared, own = (
            sum(isinstance(m, torch.nn.Conv2d) for m in part.modules()) for part in (partial.trunk, partial.heads)
        )
        assert len(convolutions) == shared + own


def test_the_batch_axis_alone_is_dynamic(files):
    graph = onnx.load(files["onnx"]).graph
    axes = [[axis.dim_param or axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in graph.input]
    assert axes == [["batch", 3, 32, 32]]
    assert [v.type.tensor_type.shape.dim[0].dim_param for v in graph.output] == ["batch"] * 3


@pytest.mark.parametrize("format", slow_but(["torch"], FORMATS))
@torch.no_grad()
def test_one_task_is_exported_without_the_layers_of_others(partial, tmp_path, format):
    file = export(partial, tmp_path, format, tasks="birds")
    agree(outputs(file), {"birds": partial(PIXELS).task_logits["birds"]})
    assert "joint" not in about(file)
    content = file.read_bytes()
    assert partial.heads[1].fc.weight.detach().numpy().tobytes() in content
    assert partial.heads[0].fc.weight.detach().numpy().tobytes() not in content


@pytest.mark.parametrize("format", FORMATS)
def test_the_metadata_says_what_goes_in_and_what_comes_out(merged, files, format):
    held = about(files[format])
    kind = "image-classification"
    names = {task: [f"{task}-{i}" for i in range(5)] for task in ("pets", "birds")}
    assert held["tasks"] == [{"task": t, "output": t, "kind": kind, "classes": c} for t, c in names.items()]
    assert held["joint"] == {"output": "logits", "classes": names["pets"] + names["birds"]}
    stated = held["preprocessing"]
    assert (stated["input"], stated["size"], stated["mean"]) == ("pixel_values", [3, 32, 32], [0.1, 0.2, 0.3])
    assert stated["std"] == [0.229, 0.224, 0.225]
    assert stated["settings"]["crop_pct"] == 0.9
    assert stated["interpolation"] == stated["settings"]["interpolation"]
    assert held["license"] == {"license": "mit"}
    assert [source["folder"] for source in held["sources"]] == ["pets", "birds"]
    assert held["generator"] == f"hf-zipit {hf_zipit.__version__}"


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_name_of_this_machine_is_written(parents, files, format):
    content = files[format].read_bytes()
    for name in ("site-packages", ".py", str(parents[0].parent), str(files[format].parent)):
        assert name.encode() not in content, name


@pytest.mark.parametrize("format", slow_but(["onnx"], FORMATS))
@torch.no_grad()
def test_a_vision_transformer_of_transformers(tmp_path, format):
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.3] * 3, resample=3)
    for seed, task in enumerate(("low", "high")):
        hf_vit(seed).save_pretrained(tmp_path / task)
        processor.save_pretrained(tmp_path / task)
    merged = hf_zipit.merge([tmp_path / "low", tmp_path / "high"], images(16), method="select", cache=False)
    merged = load_merged(hf_zipit.save(merged, tmp_path / "merged"))
    expected = merged(PIXELS)
    file = export(merged, tmp_path, format)
    agree(outputs(file), {**expected.task_logits, "logits": expected.logits})
    stated = about(file)["preprocessing"]
    assert stated["scale"] == pytest.approx(1 / 255)
    assert (stated["mean"], stated["std"], stated["interpolation"]) == ([0.3] * 3, [0.5] * 3, "bicubic")
    assert stated["settings"]["size"] == {"height": 32, "width": 32}


@pytest.mark.parametrize("pair", slow_but(["smp Unet"], ["smp Unet", "Depth Anything", "UperNet", "SegFormer"]))
@pytest.mark.parametrize("format", slow_but(["onnx"], FORMATS))
@torch.no_grad()
def test_tasks_with_other_outputs(tmp_path, pair, format):
    first, second = PAIRS[pair]
    sources = [small(first, 0, 32), small(second, 1, 32)]
    merged = hf_zipit.merge(sources, images(16), method="average", tasks=TASKS, cache=False)
    answers = merged(PIXELS).task_outputs
    expected = {task: next(iter(answers[task].values())) for task in TASKS}
    assert expected["maps"].ndim > 2
    file = export(merged, tmp_path, format)
    agree(outputs(file), expected)
    entries = about(file)["tasks"]
    assert [entry["kind"] for entry in entries] == [head["kind"] for head in merged.config.heads]
    alone = export(merged, tmp_path, "torch", tasks=["maps"], overwrite=True)
    agree(outputs(alone), {"maps": expected["maps"]})


@torch.no_grad()
def test_further_tensors_in_the_output_of_a_model_have_outputs_too(tmp_path):
    """A ViT without a classifier returns its tokens and a pooled one."""
    first, _ = PAIRS["masked images"]
    sources = [small(first, 0, 32), small(lambda: transformers.ViTModel(vit_config()), 1, 32)]
    merged = hf_zipit.merge(sources, images(16), method="average", tasks=["classes", "a b"], cache=False)
    answers = merged(PIXELS).task_outputs
    expected = {
        "classes": answers["classes"].logits,
        "a_b": answers["a b"].last_hidden_state,
        "a_b_pooler_output": answers["a b"].pooler_output,
    }
    file = export(merged, tmp_path, "torch")
    agree(outputs(file), expected)
    entry = about(file)["tasks"][1]
    assert (entry["output"], entry["other_outputs"]) == ("a_b", {"pooler_output": "a_b_pooler_output"})
    assert entry["kind"] == "image-feature-extraction"
    merged.config.input_size = [3, 24, 24]
    with pytest.raises(OutputError, match="cannot run on an image of its stated input size 3 x 24 x 24"):
        export(merged, tmp_path / "never", "torch")


NAMES = ["0-4", "a b", "a_b", "logits", "pixel_values", "conv2d", "relu", "é", "val_0", "linear"]


@torch.no_grad()
def test_names_of_tasks_become_names_of_outputs(tmp_path):
    models = [tiny("cifar_resnet20", seed) for seed in range(len(NAMES))]
    merged = hf_zipit.merge(models, tasks=NAMES, **AVERAGE)
    expected = merged(PIXELS)
    safe = ["_0_4", "a_b", "a_b_2", "logits_2", "pixel_values_2", "conv2d", "relu", "_", "val_0", "linear"]
    named = dict(zip(safe, expected.task_logits.values(), strict=True))
    for format in FORMATS:
        file = export(merged, tmp_path, format)
        agree(outputs(file), {**named, "logits": expected.logits})
        assert [(entry["task"], entry["output"]) for entry in about(file)["tasks"]] == list(
            zip(NAMES, safe, strict=True)
        )
    onnx.checker.check_model(tmp_path / "out.onnx", full_check=True)


@torch.no_grad()
def test_half_precision_becomes_float32_and_the_merge_is_not_changed(little, tmp_path):
    model = copy.deepcopy(little).half().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = outputs(export(model, tmp_path, "torch"))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    agree(found, {**(expected := model.float().eval()(PIXELS)).task_logits, "logits": expected.logits})


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_that_computes_something_else_does_not_appear(little, tmp_path, format, monkeypatch):
    right = exporting.traced

    def wrong(graph):
        other = copy.deepcopy(graph)
        other.merged.heads[1].fc.bias.data[2] += 0.5  # of the second task
        return right(other)

    monkeypatch.setattr(exporting, "traced", wrong)
    with pytest.raises(OutputError, match=r"out\..* is not written: its output 'birds' differs .* by 0\.5 on 1 images"):
        export(little, tmp_path / "new" / "folder", format)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_outputs_or_other_sizes_is_refused(little, tmp_path):
    graph = Graph(little, ["pets", "birds"])
    for change, message in [
        (lambda found: {"pets": found["pets"]}, "it has the outputs pets, not pets, birds, logits"),
        (
            lambda found: {**found, "logits": found["logits"][:1]},
            "'logits' differs from the merge's by inf on 3 images",
        ),
        (lambda found: {**found, "pets": found["pets"] * float("nan")}, "'pets' differs from the merge's by nan"),
    ]:
        with pytest.raises(OutputError, match=message):
            exporting._check(graph, lambda pixels, change=change: change(graph(pixels)), tmp_path)


class Branching(torch.nn.Module):
    """Goes one way or the other, by what it reads."""

    def forward(self, x):
        return x if float(x.detach().sum()) > 0 else -x


def test_a_merge_that_cannot_be_traced_is_refused(little, tmp_path):
    model = copy.deepcopy(little)
    model.trunk.act1 = Branching()
    with pytest.raises(OutputError, match=r"torch\.export cannot trace the merge for batches of any size"):
        export(model, tmp_path, "torch")
    model.heads[0].fc.bias.data[0] = float("nan")
    with pytest.raises(OutputError, match=r"1 of 5 values of heads\.0\.fc\.bias are NaN"):
        export(model, tmp_path, "torch")
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_large_weights_lie_in_a_file_beside(little, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST", 0)
    file = export(little, tmp_path, "onnx")
    data = tmp_path / "out.onnx.data"
    assert {path.name for path in tmp_path.iterdir()} == {file.name, data.name}
    assert little.heads[1].fc.weight.detach().numpy().tobytes() in data.read_bytes()
    (tmp_path / "moved").mkdir()
    for path in (file, data):
        path.rename(tmp_path / "moved" / path.name)
    expected = little(PIXELS)
    agree(outputs(tmp_path / "moved" / file.name), {**expected.task_logits, "logits": expected.logits})
    with pytest.raises(OptionError, match=r"out.onnx exists already"):
        export(little, tmp_path / "moved", "onnx")
    monkeypatch.undo()
    export(little, tmp_path / "moved", "onnx", overwrite=True)
    assert [path.name for path in (tmp_path / "moved").iterdir()] == [file.name]


def test_a_data_file_of_somebody_else_is_not_replaced(little, tmp_path):
    (tmp_path / "out.onnx.data").write_bytes(b"mine")
    with pytest.raises(OptionError, match=r"out.onnx.data exists already"):
        export(little, tmp_path, "onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {}, "a.onnx exists already: choose another file, or replace it"),
        ("folder.onnx", {}, "is a folder"),
        ("b.pt2", {}, "whose name ends with .onnx"),
        ("b.onnx", {"format": "torch"}, "whose name ends with .pt2"),
        ("b.onnx", {"format": "timm"}, "unknown format 'timm'; formats: onnx, torch. Ordinary checkpoints"),
        ("b.onnx", {"tasks": "cats"}, "unknown task 'cats'; tasks: pets, birds"),
        ("b.onnx", {"tasks": []}, "unknown task ''"),
        ("a.onnx/b.onnx", {}, "is not a folder"),
    ],
)
def test_wrong_usage(little, tmp_path, name, options, message):
    (tmp_path / "a.onnx").write_bytes(b"earlier")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(OptionError, match=message):
        hf_zipit.export(little, tmp_path / name, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "folder.onnx"}
    assert (tmp_path / "a.onnx").read_bytes() == b"earlier"


def test_parents_of_different_licenses_need_one(merged, tmp_path):
    model = copy.deepcopy(merged)
    for source, license in zip(model.config.zipit["sources"], ("mit", "gpl-3.0"), strict=True):
        source["license"] = license
    with pytest.raises(SourceError, match="licenses"):
        export(model, tmp_path, "torch")
    assert about(export(model, tmp_path, "torch", license="gpl-3.0"))["license"] == {"license": "gpl-3.0"}


def test_without_the_extra_the_error_names_it(little, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(OptionError, match=r"the format onnx needs onnxscript: pip install 'hf-zipit\[onnx\]'"):
        export(little, tmp_path, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_commands(run, merged, partial, tmp_path):
    hf_zipit.save(merged, tmp_path / "merged")
    hf_zipit.save(partial, tmp_path / "partial")
    for format in FORMATS:
        file = tmp_path / f"new/out{exporting.SUFFIXES[format]}"
        command = ["export", tmp_path / "partial", "--format", format, "-o", file]
        code, printed, said = run(*command)
        assert (code, printed) == (0, f"{file}\n")
        assert said == (
            "Input: pixel_values (B, 3, 32, 32), preprocessed images. "
            "Outputs: pets (5 classes), birds (5 classes), logits (10 classes)\n"
        )
        assert list(outputs(file)) == ["pets", "birds", "logits"]
        code, _, error = run(*command)
        assert code == 2
        assert "exists already: choose another file" in error
    code, printed, _ = run(*command, "--overwrite", "--json", "--task", "birds", "--license", "mit")
    assert code == 0
    schema = {"schema": "hf-zipit/export/1"}
    written = {"file": str(file), "format": "torch", "tasks": ["birds"], "outputs": ["birds"]}
    assert json.loads(printed) == {**schema, **written}
    assert list(outputs(file)) == ["birds"]
    assert about(file)["license"] == {"license": "mit"}
    code, printed, _ = run("export", tmp_path / "partial", "-o", tmp_path / "named.pt2", "--json")
    assert json.loads(printed)["format"] == "torch"  # as its name says
    code, _, error = run("export", tmp_path / "merged", "-o", tmp_path / "never", "--format", "onix")
    assert (code, error) == (2, "Error: unknown format 'onix'; formats: plain, timm, transformers, onnx, torch\n")
    code, printed, _ = run("export", tmp_path / "merged", "-o", tmp_path / "plain", "--json")
    plain = {"folder": str(tmp_path / "plain"), "format": "timm", "tasks": ["pets", "birds"]}
    assert json.loads(printed) == {**schema, **plain}
    code, _, error = run("export", tmp_path / "partial", "-o", tmp_path / "never")
    assert code == 1
    assert "use `hf-zipit export --format onnx` (or torch)" in error
    both = ["--task", "pets", "--task", "birds"]
    assert "use --task once" in run("export", tmp_path / "merged", *both, "-o", tmp_path / "never")[2]
    assert not (tmp_path / "never").exists()

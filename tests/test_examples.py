"""The examples, each run as a user runs it, on tiny made-up copies of the data sets' original files."""

import importlib
import os
import re
import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from scipy.io import savemat
from timm.models import save_for_hf
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, ViTImageProcessor

import hf_zipit.models.cifar_resnet  # noqa: F401  (registers cifar_resnet20)
from hf_zipit.sources.load import load_source
from tests.helpers.marks import slow_but
from tests.helpers.models import hf_vit

EXAMPLES = Path(__file__).parent.parent / "examples"
DATA = Path(os.environ.get("HF_ZIPIT_TEST_DATA", "no such folder"))  # data sets too large to keep here
BREEDS = ["n02085620-Chihuahua", "n02110185-Siberian_husky", "n02085782-Japanese_spaniel"]
SHORT = {"dogs": "stanford_dogs", "pets": "oxford_pets", "nabirds": "nabirds"}
QUICK = ["--image-size", "32", "--epochs", "1", "--batch-size", "8"]


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run a script with arguments, as its own main program but in this process, and return what it prints."""

    def call(script: str, *arguments: object) -> str:
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        torch.manual_seed(0)
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return call


def picture(path: Path, label: int, number: int) -> None:
    """A noisy square of the class's colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = np.array([60 * label, 200 - 60 * label, 40 + 50 * label])
    noise = np.random.default_rng(100 * label + number).integers(0, 40, (40, 48, 3))
    Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)


def stanford_dogs(root: Path) -> Path:
    """`Images/`, `train_list.mat`, `test_list.mat`: cells of paths, classes from 1."""
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        paths, labels = [], []
        for label, breed in enumerate(BREEDS):
            for number in numbers:
                name = f"{breed}/{breed[:9]}_{number}"
                picture(root / "Images" / f"{name}.jpg", label, number)
                paths.append(name)
                labels.append(label + 1)
        cells = np.array([[path] for path in paths], dtype=object)
        files = np.array([[f"{path}.jpg"] for path in paths], dtype=object)
        lists = {"annotation_list": cells, "file_list": files, "labels": np.array(labels, np.uint8)[:, None]}
        savemat(root / f"{split}_list.mat", lists)
    return root


def oxford_pets(root: Path) -> Path:
    """`images/`, `annotations/{trainval,test}.txt`."""
    (root / "annotations").mkdir(parents=True)
    for file, numbers in (("trainval", range(8)), ("test", range(8, 12))):
        lines = []
        for label, breed in enumerate(["Abyssinian", "american_bulldog", "British_Shorthair"]):
            for number in numbers:
                picture(root / "images" / f"{breed}_{number}.jpg", label, number)
                lines.append(f"{breed}_{number} {label + 1} {1 + (label == 1)} {label + 1}")
        (root / "annotations" / f"{file}.txt").write_text("\n".join(lines) + "\n")
    return root


def bird_files(root: Path, classes: dict[str, str], image_ids: list[str]) -> Path:
    """Text files that are joined on the image's id; only the last three classes have images."""
    images, labels, splits = [], [], []
    for label, number in enumerate(list(classes)[-3:]):
        for count in range(12):
            image = image_ids[12 * label + count]
            path = f"{int(number):04d}/{image.replace('-', '')}.jpg"
            picture(root / "images" / path, label, count)
            images.append(f"{image} {path}")
            labels.append(f"{image} {number}")
            splits.append(f"{image} {int(count < 8)}")
    files = {"images": images, "image_class_labels": labels, "train_test_split": splits}
    files["classes"] = [f"{number} {name}" for number, name in classes.items()]
    for name, lines in files.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def cub200(root: Path) -> Path:
    """As it is unpacked: in a folder of its own."""
    classes = {"1": "001.Black_footed_Albatross", "2": "002.Laysan_Albatross", "3": "003.Sooty_Albatross"}
    bird_files(root / "CUB_200_2011", classes, [str(i + 1) for i in range(36)])
    return root


def nabirds(root: Path) -> Path:
    """Ids with gaps, image ids that are UUIDs, and classes without images."""
    classes = {
        "0": "Birds",
        "295": "Common Eider (Adult male)",
        "817": "Oak Titmouse",
        "1010": "Black-and-white Warbler",
    }
    ids = [f"{i:08x}-9a2e-4ff1-a2a7-{i:012x}" for i in range(36)]
    return bird_files(root, classes, ids)


LAYOUTS = {f.__name__: f for f in (stanford_dogs, oxford_pets, cub200, nabirds)}
NAMES = {
    "stanford_dogs": ["Chihuahua", "Siberian_husky", "Japanese_spaniel"],
    "oxford_pets": ["Abyssinian", "american_bulldog", "British_Shorthair"],
    "cub200": ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"],
    "nabirds": ["Common Eider (Adult male)", "Oak Titmouse", "Black-and-white Warbler"],
}


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A tiny pretrained model."""
    folder = tmp_path_factory.mktemp("base")
    args = {"depth": 8, "width": 1}
    model = timm.create_model("cifar_resnet20", num_classes=7, **args)
    save_for_hf(model, folder, model_args=args, safe_serialization=True)
    return folder


@pytest.mark.parametrize("name", slow_but(("stanford_dogs",), LAYOUTS))
def test_each_data_set_trains_from_its_original_files(name, run_example, base, tmp_path):
    data, out = LAYOUTS[name](tmp_path / "data"), tmp_path / "model"
    printed = run_example(f"{name}.py", data, "--out", out, "--base", base, *QUICK)
    assert re.fullmatch(rf"\w+: [\d.]+ % of 12 test images, {out}\n", printed)
    source = load_source(out)
    assert source.labels == NAMES[name]
    assert source.input_size == (3, 32, 32)


@pytest.mark.slow
def test_a_transformers_model_is_fine_tuned_in_the_same_way(run_example, tmp_path):
    hf_vit().save_pretrained(tmp_path / "base")
    ViTImageProcessor().save_pretrained(tmp_path / "base")
    data = oxford_pets(tmp_path / "data")
    run_example("oxford_pets.py", data, "--out", tmp_path / "model", "--base", tmp_path / "base", *QUICK)
    source = load_source(tmp_path / "model")
    assert source.labels == NAMES["oxford_pets"]
    assert source.transform(Image.open(next(data.rglob("*.jpg")))).shape == (3, 32, 32)


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_and_labels_belong_together(name, tmp_path, monkeypatch):
    """Every class has a colour of its own in the made-up files."""
    monkeypatch.syspath_prepend(EXAMPLES)
    original = importlib.import_module(name).TASK.original
    root = LAYOUTS[name](tmp_path)
    rows = {split: original(root, split) for split in ("train", "test")}
    assert {split: len(part) for split, part in rows.items()} == {"train": 24, "test": 12}
    for part in rows.values():
        assert part.features["label"].names == NAMES[name]
        for row in part:
            assert round((np.asarray(row["image"])[..., 0].mean() - 20) / 60) == row["label"]


def test_a_listed_file_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    root = cub200(tmp_path)
    gone = next(root.rglob("*.jpg"))
    gone.unlink()
    with pytest.raises(SystemExit, match=f"{gone} is listed but missing"):
        [importlib.import_module("cub200").TASK.original(root, split) for split in ("train", "test")]


@pytest.mark.slow
def test_pairs_and_all_are_merged_and_evaluated(run_example, base, tmp_path):
    data = [f"{short}={LAYOUTS[name](tmp_path / name)}" for short, name in SHORT.items()]
    options = ["--methods", "zip", "random", "--cuts", "layer1", "--calibrate", "batchnorm"]
    options += ["--num-images", "8", "--base", base]
    printed = run_example("four_datasets.py", tmp_path / "out", *data, *options, *QUICK)
    pairs, everything = printed.split("All 3 in one model")
    for part in (pairs, everything):
        shown = [line.split()[:3] for line in part.splitlines() if len(line.split()) == 13]
        merges = [[*setting.split(), "batchnorm"] for setting in ("zip none", "control:random none", "zip layer1")]
        assert shown == [*merges, *([f"parent:{name}", "-", "-"] for name in SHORT), ["ensemble", "-", "-"]]
    assert (tmp_path / "out" / "dogs-pets-nabirds-zip-layer1" / "model.safetensors").exists()
    assert load_source(tmp_path / "out" / "pets").labels == NAMES["oxford_pets"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the Tiny ImageNet subsets")
def test_the_tiny_imagenet_subsets_are_merged(run_example, base, tmp_path):
    data = [f"{name}={DATA / f'tinyimagenet_{name}'}" for name in ("pets", "wild", "vehicles")]
    options = ["--methods", "zip", "--cuts", "--num-images", "64", "--train-images", "256", "--base", base]
    printed = run_example("four_datasets.py", tmp_path / "out", *data, *options, "--calibrate", "batchnorm", *QUICK)
    assert len(re.findall(r"^zip +none +batchnorm( +[\d.x]+){7} k( +[\d.]+){2}$", printed, re.M)) == 2, printed
    assert len(load_source(tmp_path / "out" / "wild").labels) == 15


def cifar(root: Path) -> Path:
    """Four classes of coloured squares as parquet files."""
    names = ["apple", "bear", "crab", "dolphin"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    for split, count in (("train", 64), ("test", 16)):
        labels = [i % 4 for i in range(count)]
        noise = np.random.default_rng(count).integers(0, 60, (count, 32, 32, 3))
        colours = np.array([[180, 0, 0], [0, 180, 0], [0, 0, 180], [180, 180, 0]])[labels]
        pixels = (noise + colours[:, None, None]).astype(np.uint8)
        rows = {"image": [Image.fromarray(p) for p in pixels], "label": labels}
        root.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}.parquet"))
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_without_the_original_files_is_read_by_the_library(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    task = importlib.import_module(name).TASK
    assert len(task.split(str(cifar(tmp_path / "data")), "test")) == 16


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ["--model", "vit", "--width", "0.34", "--same-init", "--cuts", "vit.layers.1"],
            id="vit",
        ),
        pytest.param(
            ["--model", "vgg11_bn", "--width", "0.0625", "--targets", "codes", "--cuts", "features.1"],
            id="vgg, class vectors",
        ),
    ],
)
@pytest.mark.slow
def test_cifar_pairs_are_trained_and_merged(options, run_example, tmp_path):
    data = cifar(tmp_path / "data")
    quick = ["--epochs", "2", "--batch-size", "16", "--num-images", "16", "--no-bf16", "--calibrate", "batchnorm"]
    quick += ["--methods", "average", "zip", "random"]
    printed = run_example("cifar_pairs.py", data, tmp_path / "out", *options, *quick)
    for row in ("average +none", "zip +none", "zip +[a-z]+[.].* +batchnorm", "control:random +none", "ensemble +-"):
        assert re.search(rf"^{row}", printed, re.M), printed
    assert len(list((tmp_path / "out").glob("comparison-*/results.csv"))) == 1
    labels = [load_source(file.parent).labels for file in sorted((tmp_path / "out").glob("*/model.safetensors"))]
    assert sorted(labels[0] + labels[1]) == ["apple", "bear", "crab", "dolphin"]
    again = run_example("cifar_pairs.py", data, tmp_path / "out", *options, *quick)
    assert again in printed  # the models were there already: only the table is printed


def test_folding_the_class_vectors_keeps_the_order_of_the_classes(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    cifar = importlib.import_module("cifar")
    for name, width in (("resnet20", 1), ("vit", 1 / 3)):
        vectors = cifar.class_vectors([str(i) for i in range(6)], "codes")
        learner = cifar.Towards(cifar.build(name, width, vectors.shape[1], seed=0), vectors[:3]).eval()
        pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            cosines = learner(pixels)
            scores = cifar.logits_of(learner.folded(["a", "b", "c"])(pixels))
        assert torch.equal(scores.argsort(1), cosines.argsort(1))


def test_class_vectors_come_from_a_text_encoder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    words = {f"{letter}</w>": i + 26 for letter, i in letters.items()}
    CLIPTokenizer({**letters, **words, "<|startoftext|>": 52, "<|endoftext|>": 53}, []).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(vocab_size=54, eos_token_id=53, bos_token_id=52, projection_dim=8, **sizes)
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    vectors = importlib.import_module("cifar").class_vectors(["cat", "maple_tree"], str(tmp_path))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    assert vectors.shape == (2, 8)
    assert not torch.allclose(vectors[0], vectors[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options", "row"),
    [
        ("dense_tasks.py", ["--epochs", 1, "--count", 64], r"zip, refit( +-?\d+\.\d{3}){5}"),
        ("segmentation_and_classification.py", ["--epochs", 1], r"layer2: zip, refit( +\d+\.\d){3} +1\.\d\dx"),
    ],
)
def test_models_with_different_outputs_are_trained_and_merged(script, options, row, run_example):
    assert re.search(row, run_example(script, *options))


@pytest.mark.slow
def test_detection(run_example, tmp_path):
    printed = run_example("detection.py", "--steps", 2, "--images", 12, "--out", tmp_path)
    assert "layer.1: select, refit" in printed
    assert "boxes of all tasks in one image:" in printed

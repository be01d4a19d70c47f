"""An evaluation loop of plain torch and PIL agrees with ours to the last image, whatever images and models come from.

The loop shares no code with the package: it opens the saved models, normalises the pixels and counts the hits itself.
"""

import gc
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import hf_zipit
from hf_zipit.saving.load import load_merged
from hf_zipit.saving.save import save
from tests.helpers.marks import slow
from tests.helpers.models import randomise

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # `datasets` leaves files open
SIDE = 16
CLASSES = ["ape", "bee", "cat", "dog", "eel"]
OWN = {"a": ["ape", "bee"], "b": ["eel", "cat", "dog"], "c": ["bee", "eel"]}  # the classes of each parent
COUNTS = {"ape": 7, "bee": 5, "cat": 9, "dog": 6, "eel": 4}
HALF = (0.5, 0.5, 0.5)


def pictures(count: int) -> Iterator[tuple[Image.Image, str]]:
    """Pictures with the names of their classes: `count` times those of `COUNTS`, shuffled."""
    rng = np.random.default_rng(0)
    names = [name for name, number in COUNTS.items() for _ in range(number * count)]
    for name in rng.permutation(names):
        colour = rng.integers(0, 256, (2, 2, 3)) + rng.normal(0, 40, (1, 1, 3))
        pixels = np.kron(colour, np.ones((SIDE // 2, SIDE // 2, 1))) + rng.normal(0, 20, (SIDE, SIDE, 3))
        yield Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), str(name)


PICTURES = list(pictures(1))
OTHERS = [(image.rotate(90), name) for image, name in pictures(1)]


def pixels_of(image: Image.Image) -> torch.Tensor:
    """A picture of the right size as pixels `(3, H, W)`, with mean and standard deviation one half."""
    values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)
    return ((values - 0.5) / 0.5).permute(2, 0, 1)


# Models


def timm_folder(folder: Path, seed: int, classes: list[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    args = {"channels": [4, 8, 8, 8], "layers": [1, 1, 1, 1]}
    model = randomise(timm.create_model("resnet18", num_classes=len(classes), **args).eval(), seed)
    settings = {"input_size": (3, SIDE, SIDE), "crop_pct": 1.0, "mean": HALF, "std": HALF}
    model.pretrained_cfg = {**model.pretrained_cfg, **settings}
    named = {"label_names": classes}
    timm.models.save_for_hf(model, folder, model_config=named, model_args=args, safe_serialization=True)
    again = timm.create_model("resnet18", num_classes=len(classes), **args).eval()
    again.load_state_dict(load_file(folder / "model.safetensors"))
    return again


def transformers_folder(folder: Path, seed: int, classes: list[str]) -> Callable[[torch.Tensor], torch.Tensor]:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=8, **labels)
    randomise(transformers.ViTForImageClassification(config).eval(), seed).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.ViTImageProcessor(size=size, image_mean=HALF, image_std=HALF).save_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    return lambda pixels: model(pixel_values=pixels).logits


@dataclass(frozen=True)
class Merge:
    """A merge as `evaluate` takes it, and all that the plain loop needs.

    Attributes:
        merged: the merge.
        parents: what it was made of.
        classes: the class names of every task.
        run: pixels -> the logits of every task.
        alone: for every task, pixels -> its parent's logits.
        folder: where the merge is saved, if it is.
    """

    merged: Any
    parents: list[Any]
    classes: dict[str, list[str]]
    run: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    alone: list[Callable[[torch.Tensor], torch.Tensor]]
    folder: Path | None = None


def train_data() -> list[torch.Tensor]:
    return list(torch.stack([pixels_of(image) for image, _ in OTHERS]).split(8))


def _merged(home: Path, make: Callable[..., Any], cut: str | None, tasks: str = "ab") -> Merge:
    alone = [make(home / task, seed, OWN[task]) for seed, task in enumerate(tasks)]
    folders = [home / task for task in tasks]
    merged = hf_zipit.merge(folders, train_data(), cut=cut)
    saved = load_merged(save(merged, home / "merge"))
    return Merge(saved, folders, {t: OWN[t] for t in tasks}, lambda x: saved(x).task_logits, alone, home / "merge")


def _in_memory(home: Path) -> Merge:
    alone = [timm_folder(home / task, seed, OWN[task]) for seed, task in enumerate("ab")]
    sources = [hf_zipit.load_source(home / task) for task in "ab"]
    merged = hf_zipit.merge([source.model for source in sources], train_data(), tasks=["a", "b"])
    for head in merged.config.heads:  # a module has no class names: they are given afterwards, as by its owner
        head["id2label"] = dict(enumerate(OWN[head["task"]]))
    merged.config.pretrained_cfg = sources[0].settings
    return Merge(merged, sources, {t: OWN[t] for t in "ab"}, lambda x: merged(x).task_logits, alone)


def _of_merges(home: Path, cut: str | None) -> Merge:
    first = _merged(home, timm_folder, cut)
    third = timm_folder(home / "c", 2, OWN["c"])
    again = hf_zipit.merge([home / "merge", home / "c"], train_data(), cut=cut)
    saved = load_merged(save(again, home / "again"))
    inner = load_merged(home / "merge")
    alone = [lambda x: inner(x).task_logits["a"], lambda x: inner(x).task_logits["b"], third]
    assert first.folder is not None
    sources = [home / "merge", home / "c"]
    return Merge(saved, sources, OWN, lambda x: saved(x).task_logits, alone, home / "again")


MODELS: dict[str, Callable[[Path], Merge]] = {
    "timm": lambda home: _merged(home, timm_folder, None),
    "timm, partial": lambda home: _merged(home, timm_folder, "layer2"),
    "transformers": lambda home: _merged(home, transformers_folder, None),
    "transformers, partial": lambda home: _merged(home, transformers_folder, "vit.layers.0"),
    "in memory": _in_memory,
    "a merge of a merge": lambda home: _of_merges(home, None),
    "a partial merge of a partial merge": lambda home: _of_merges(home, "layer2"),
}


@pytest.fixture(scope="module")
def merges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Merge]]:
    """Every merge by its name, made when it is asked for."""
    made: dict[str, Merge] = {}

    def get(name: str) -> Merge:
        if name not in made:
            made[name] = MODELS[name](tmp_path_factory.mktemp("models"))
        return made[name]

    yield get
    gc.collect()  # while warnings about open files are ignored


# Images


def table(pairs: list[tuple[Image.Image, str]], label: str = "label") -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), label: datasets.ClassLabel(names=CLASSES)})
    values = {"image": [image for image, _ in pairs], label: [CLASSES.index(name) for _, name in pairs]}
    return datasets.Dataset.from_dict(values, features=features)


def write_folder(folder: Path, pairs: list[tuple[Image.Image, str]]) -> Path:
    for i, (image, name) in enumerate(pairs):
        (folder / name).mkdir(parents=True, exist_ok=True)
        image.save(folder / name / f"{i}.png")
    return folder


def _splits(home: Path) -> Path:
    write_folder(home / "data" / "train", OTHERS)
    write_folder(home / "data" / "test", PICTURES)
    return home / "data"


def _parquet(home: Path) -> Path:
    table(PICTURES).to_parquet(home / "rows.parquet")
    return home / "rows.parquet"


def _parquet_splits(home: Path) -> Path:
    table(OTHERS).to_parquet(home / "train.parquet")
    table(PICTURES[:10]).to_parquet(home / "test-00000-of-00002.parquet")
    table(PICTURES[10:]).to_parquet(home / "test-00001-of-00002.parquet")
    return home


def _metadata(home: Path) -> Path:
    lines = ["file_name,label"]
    for i, (image, name) in enumerate(PICTURES):
        image.save(home / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    (home / "metadata.csv").write_text("\n".join(lines))
    return home


def _words(home: Path) -> datasets.Dataset:
    rows = table(PICTURES)
    return rows.cast_column("label", datasets.Value("string")).map(
        lambda row: {"label": CLASSES[int(row["label"])]}, load_from_cache_file=False
    )


def _unlabelled(home: Path) -> datasets.Dataset:
    """Further pictures without a label."""
    rows = table(PICTURES + OTHERS[:9])
    labels = [*rows["label"][: len(PICTURES)], *[-1] * 9]
    return rows.remove_columns("label").add_column("label", labels, feature=rows.features["label"])


def _of_the_notebook(rows: datasets.Dataset) -> datasets.Dataset:
    """A data set as training scripts leave it."""

    def prepare(batch: dict) -> dict:
        batch["pixel_values"] = [pixels_of(image) for image in batch["image"]]
        del batch["image"]
        return batch

    return rows.with_transform(prepare)


DATA: dict[str, Callable[[Path], Any]] = {
    "folder": lambda home: write_folder(home / "data", PICTURES),
    "folder with splits": _splits,
    "folder, one split": lambda home: f"{_splits(home)}:test",
    "parquet": _parquet,
    "parquet with splits": _parquet_splits,
    "metadata.csv": _metadata,
    "Dataset": lambda home: table(PICTURES),
    "DatasetDict": lambda home: datasets.DatasetDict(train=table(OTHERS), test=table(PICTURES)),
    "Dataset, words": _words,
    "Dataset, other columns": lambda home: table(PICTURES, "species"),
    "Dataset, unlabelled rows": _unlabelled,
    "Dataset, selected": lambda home: table(OTHERS + PICTURES).select(range(len(OTHERS), len(OTHERS + PICTURES))),
    "with_transform": lambda home: _of_the_notebook(table(PICTURES)),
    "with_format": lambda home: table(PICTURES).with_format("torch"),
}


# The plain loop


def plain(merge: Merge, per_task: list[list[tuple[torch.Tensor, int]]]) -> list[dict[str, Any]]:
    """The accuracies of the merge, its parents and their ensemble, counted image by image.

    Args:
        merge: the models.
        per_task: for every task the pixels of its images and their classes among those of the task.
    """
    tasks = list(merge.classes)
    joint = {"merged": 0, "ensemble": 0} | {f"parent:{task}": 0 for task in tasks}
    hits = {name: dict.fromkeys(tasks, 0) for name in joint}
    offsets = [sum(len(merge.classes[t]) for t in tasks[:i]) for i in range(len(tasks))]
    for number, (task, images) in enumerate(zip(tasks, per_task, strict=True)):
        pixels = torch.stack([image for image, _ in images])
        with torch.no_grad():
            merged = list(merge.run(pixels).values())
            parents = [run(pixels) for run in merge.alone]
        for i, (_, wanted) in enumerate(images):
            for name, logits in (("merged", merged), ("ensemble", parents)):
                hits[name][task] += int(logits[number][i].argmax()) == wanted
                best = int(torch.cat([values[i].softmax(0) for values in logits]).argmax())
                joint[name] += best == wanted + offsets[number]
            hits[f"parent:{task}"][task] += int(parents[number][i].argmax()) == wanted
            joint[f"parent:{task}"] += int(parents[number][i].argmax()) == wanted
    every = sum(map(len, per_task))
    counts = dict(zip(tasks, map(len, per_task), strict=True))
    rows = []
    for name in ["merged", *(f"parent:{task}" for task in tasks), "ensemble"]:
        own = [task for task in tasks if name in ("merged", "ensemble", f"parent:{task}")]
        scores = {task: hits[name][task] / counts[task] for task in own}
        average = sum(scores.values()) / len(scores)
        rows.append({"model": name, "tasks": scores, "average": average, "joint": joint[name] / every})
    return rows


def by_name(merge: Merge, pairs: list[tuple[Image.Image, str]] = PICTURES) -> list[list[tuple[torch.Tensor, int]]]:
    """For every task its pictures, with their classes among those of the task."""
    return [
        [(pixels_of(image), names.index(name)) for image, name in pairs if name in names]
        for names in merge.classes.values()
    ]


def agrees(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["model"] for row in found] == [row["model"] for row in expected]
    for row, plainly in zip(found, expected, strict=True):
        for key in ("tasks", "average", "joint"):
            assert row[key] == pytest.approx(plainly[key], abs=1e-9), f"{key} of {row['model']}"


def evaluated(merge: Merge, data: Any, **options: Any) -> list[dict[str, Any]]:
    return [row.to_dict() for row in hf_zipit.evaluate(merge.merged, data, parents=merge.parents, **options)]


# The tests


@pytest.mark.parametrize("kind", DATA)
def test_images_of_every_kind(merges, kind, tmp_path):
    merge = merges("timm")
    agrees(evaluated(merge, DATA[kind](tmp_path)), plain(merge, by_name(merge)))


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_every_kind(merges, kind):
    merge = merges(kind)
    expected = plain(merge, by_name(merge))
    agrees(evaluated(merge, table(PICTURES)), expected)
    assert 0 < expected[0]["joint"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_on_images_of_every_kind(merges, model, kind, tmp_path):
    merge = merges(model)
    agrees(evaluated(merge, DATA[kind](tmp_path), batch_size=5), plain(merge, by_name(merge)))


@pytest.mark.parametrize("kind", ["timm", slow("timm, partial"), slow("transformers"), slow("a merge of a merge")])
def test_the_command(merges, kind, tmp_path, run):
    merge = merges(kind)
    code, printed, err = run("eval", merge.folder, "--data", DATA["folder"](tmp_path), "--json")
    assert code == 0, err
    agrees(json.loads(printed)["rows"], plain(merge, by_name(merge)))


@pytest.mark.parametrize("form", ["pairs", "dicts", "one batch"])
def test_batches_of_pixels_with_class_numbers(merges, form):
    """Numbers are those of each task's own classes."""
    merge = merges("timm")
    pixels = torch.stack([pixels_of(image) for image, _ in PICTURES])
    sets, per_task = [], []
    for names in merge.classes.values():
        numbers = torch.arange(len(PICTURES)) % len(names)
        per_task.append(list(zip(pixels, numbers.tolist(), strict=True)))
        parts = (
            list(zip(pixels.split(7), numbers.split(7), strict=True)) if form != "one batch" else [(pixels, numbers)]
        )
        sets.append([{"pixel_values": x, "labels": y} for x, y in parts] if form == "dicts" else parts)
    agrees(evaluated(merge, sets), plain(merge, per_task))


def test_a_data_set_for_each_task(merges, tmp_path):
    merge = merges("timm")
    first = [pair for pair in PICTURES if pair[1] in OWN["a"]]
    data = [write_folder(tmp_path / "data", first), table(OTHERS)]
    agrees(evaluated(merge, data), plain(merge, [by_name(merge, first)[0], by_name(merge, OTHERS)[1]]))


def test_models_and_images_of_the_hub(datasets_hub, merges, tmp_path):
    merge = merges("timm")
    datasets_hub.add("user/merged", merge.folder)
    for name, folder in zip("ab", merge.parents, strict=True):
        datasets_hub.add(f"user/{name}", folder)
    repo = datasets_hub.add("user/pictures")
    (tmp_path / "rows").mkdir()
    repo.commit({file.name: file.read_bytes() for file in _parquet_splits(tmp_path / "rows").iterdir()})
    merged = load_merged("user/merged")
    rows = hf_zipit.evaluate(merged, "user/pictures", parents=["user/a", "user/b"])
    agrees([row.to_dict() for row in rows], plain(merge, by_name(merge)))

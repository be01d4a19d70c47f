"""Odd parquet files: labels of every kind, missing cells, several columns, damage."""

import io
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pyarrow.parquet

from tests.fuzz import odd
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import World, picture

ROWS = 6
NAMES = ["ape", "bee", "cat"]


def _png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def _labels(rng: Random) -> dict[str, tuple[Any, list[Any]]]:
    """Columns of labels by what they are: their feature and their values."""
    named = datasets.ClassLabel(names=NAMES)
    right = [i % 2 for i in range(ROWS)]
    return {
        "names": (named, right),
        "unlabelled rows": (named, [-1, *right[1:]]),
        "no labelled row": (named, [-1] * ROWS),
        "missing labels": (named, [None, *right[1:]]),
        "numbers": (datasets.Value("int64"), right),
        "missing numbers": (datasets.Value("int64"), [None, *right[1:]]),
        "large numbers": (datasets.Value("int64"), [10**9, *right[1:]]),
        "negative numbers": (datasets.Value("int64"), [-5, *right[1:]]),
        "words": (datasets.Value("string"), [NAMES[i] for i in right]),
        "missing words": (datasets.Value("string"), [None, *(NAMES[i] for i in right[1:])]),
        "digits as words": (datasets.Value("string"), [str(i) for i in right]),
        "fractions": (datasets.Value("float32"), [0.5, *right[1:]]),
        "whole fractions": (datasets.Value("float32"), [float(i) for i in right]),
        "not a number": (datasets.Value("float32"), [float("nan"), *map(float, right[1:])]),
        "truth values": (datasets.Value("bool"), [bool(i) for i in right]),
        "lists": (datasets.List(datasets.Value("int64")), [[i] for i in right]),
        "lists of names": (datasets.List(named), [[0, 1]] * ROWS),
        "other names": (datasets.ClassLabel(names=["x", "y"]), right),
        "one name in common": (datasets.ClassLabel(names=["x", "bee"]), right),
        "names in another order": (datasets.ClassLabel(names=NAMES[::-1]), right),
    }


def _images(rng: Random) -> dict[str, tuple[Any, list[Any], bool | None]]:
    """Columns of images by what they are: their feature, their values, and whether they can be used."""
    right = [{"bytes": _png(i), "path": None} for i in range(ROWS)]
    image = datasets.Image()
    return {
        "images": (image, right, True),
        "named images": (image, [{**cell, "path": f"{i}.png"} for i, cell in enumerate(right)], True),
        "a missing image": (image, [None, *right[1:]], False),
        "an empty image": (image, [{"bytes": b"", "path": None}, *right[1:]], False),
        "text as an image": (image, [{"bytes": b"text", "path": None}, *right[1:]], False),
        "an image that is a missing file": (image, [{"bytes": None, "path": "gone.png"}, *right[1:]], False),
        "no image at all": (image, [None] * ROWS, False),
        "grey images": (datasets.Image(mode="L"), right, True),
        "bytes alone": (datasets.Value("binary"), [cell["bytes"] for cell in right], None),
        "words": (datasets.Value("string"), ["x.png"] * ROWS, False),
        "lists of images": (datasets.List(image), [[cell] for cell in right], None),
        "arrays": (datasets.Array3D((3, 2, 2), "uint8"), [[[[0, 1]] * 2] * 3] * ROWS, None),
    }


def make(rng: Random, world: World, folder: Path) -> Case:
    """A merge or an evaluation on odd parquet files."""
    kind = rng.choice(sorted(_labels(rng)))
    labels = _labels(rng)[kind]
    pictures = rng.choice(sorted(_images(rng))) if rng.random() < 0.5 else "images"
    feature, cells, usable = _images(rng)[pictures]
    column = rng.choice(("image", "image", "img", "pixel values", "ünï", "label"))
    columns: dict[str, tuple[Any, list[Any]]] = {"label": labels, column: (feature, cells)}
    if rng.random() < 0.2:
        columns["fine_label"] = rng.choice(list(_labels(rng).values()))
    if rng.random() < 0.1:
        columns["second image"] = (datasets.Image(), cells) if usable else (feature, cells)
        usable = None
    if rng.random() < 0.1 and column != "label":
        del columns["label"]
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    rows = datasets.Dataset.from_dict({name: values for name, (_, values) in columns.items()}, features=features)
    data = folder / rng.choice(
        ("rows.parquet", "data/train.parquet", "data/a-00000-of-00001.parquet", "data/test.parquet")
    )
    data.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(rows.data.table, data)  # keeps the paths of files that do not exist
    told = f"{pictures} in {column!r}; labels: {kind}; columns {', '.join(columns)}; {data.relative_to(folder)}"
    usable, told = _damaged(rng, data, usable, told)
    place = data if data.parent == folder else data.parent
    flags = rng.choice(([], [], [], ["--label-column", rng.choice((*columns, "label", "gone", ""))]))
    if rng.random() < 0.5:
        merge = world.merges["full-vit"][0]
        return Case(told, ["eval", merge, "--data", place, "--json", *flags])
    if usable is False and rng.random() < 0.3:
        return Case(told, ["merge", *world.families["vit"], "--data", place, "-o", OUT, "--skip-bad-images", "1"])
    return Case(told, ["merge", *world.families["vit"], "--data", place, "-o", OUT], images=ROWS, succeeds=usable)


def _damaged(rng: Random, data: Path, usable: bool | None, told: str) -> tuple[bool | None, str]:
    if rng.random() > 0.1:
        return usable, told
    spoiled, how = odd.broken(rng, data.read_bytes())
    data.write_bytes(spoiled)
    return None, f"{told}; the file: {how}"

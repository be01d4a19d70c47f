"""Odd folders of images: names, depths, links, other files."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.fuzz.law import OUT, Case
from tests.fuzz.world import World, picture, write_images

SPLITS = ("train", "test", "validation", "val", "training", "eval", "test_set", "my-train", "train.1", "00000-of-00001")
NAMES = (
    *(
        "data",
        "images",
        "label",
        "1",
        "0",
        "-1",
        "01",
        "None",
        "nan",
        "a" * 200,
        "-o",
        "--data",
        "~",
        "$HOME",
        "#",
        "@",
    ),
    *("[a]", "a[0-9]b", "*", "a*", "?", "{a,b}", "a b", " a", "a ", "ünï", "猫", "a.b", "a.png", "%20", "a:b", "a,b"),
)
FILES = (
    *("a b.png", "[0].png", "a*.png", "ünï.png", "a.b.PNG", "-o.png", "a:b.png", "%.jpg", "?.png", "{a}.png"),
    *("train.png", "test-0.png", "validation.png"),
)
METADATA = ("right", "one row fewer", "a row of no file", "numbers", "no names", "jsonl", "two rows of a file")
Made = tuple[str, int | None, bool | None]  # what it is, its number of images, and whether a merge must succeed


def _named(rng: Random, data: Path) -> Made:
    names = tuple(rng.sample(NAMES, rng.choice((1, 2, 3))))
    write_images(data, names, 2)
    return f"classes called {', '.join(map(repr, names))}", 2 * len(names), True


def _named_as_splits(rng: Random, data: Path) -> Made:
    """All images are read, or the command says why not: these may be splits."""
    names = (*rng.sample(SPLITS, rng.choice((1, 1, 2))), *rng.sample(NAMES, 1))
    write_images(data, names, 2)
    return f"classes called {', '.join(map(repr, names))}", 2 * len(names), None


def _one_class(rng: Random, data: Path) -> Made:
    write_images(data, ("ape",), 3)
    return "one class", 3, True


def _flat(rng: Random, data: Path) -> Made:
    data.mkdir()
    for i in range(3):
        picture(i).save(data / f"{i}.png")
    return "no folders of classes", 3, True


def _empty_class(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "cat").mkdir()
    return "a class without images", 4, True


def _nested(rng: Random, data: Path) -> Made:
    write_images(data / "more", ("ape", "bee"), 2)
    write_images(data, ("cat",), 2)
    return "classes at two depths", 6, True


def _deep(rng: Random, data: Path) -> Made:
    write_images(data / "a" / "b", ("ape", "bee"), 2)
    return "classes two folders down", 4, True


def _hidden(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    picture(5).save(data / "ape" / ".hidden.png")
    (data / "ape" / "._0.png").write_bytes(b"\0\5\26\7" + bytes(50))
    (data / ".DS_Store").write_bytes(b"\0")
    (data / ".git").mkdir()
    picture(6).save(data / ".git" / "a.png")
    return "hidden files", 4, True


def _other_files(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "README.md").write_text("pictures of animals\n")
    (data / "ape" / "Thumbs.db").write_bytes(b"\0")
    (data / "bee" / "notes.txt").write_text("bees\n")
    (data / "labels.csv").write_text("a,b\n1,2\n")
    return "other files beside the images", 4, True


def _linked_file(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "ape" / "link.png").symlink_to(data / "ape" / "0.png")
    return "a link to an image", 5, True


def _linked_folder(rng: Random, data: Path) -> Made:
    write_images(data.parent / "elsewhere", ("ape", "bee"), 2)
    data.symlink_to(data.parent / "elsewhere")
    return "a link to the folder", 4, True


def _linked_class(rng: Random, data: Path) -> Made:
    write_images(data, ("ape",), 2)
    write_images(data.parent / "elsewhere", ("bee",), 2)
    (data / "bee").symlink_to(data.parent / "elsewhere" / "bee")
    return "a link to the folder of a class", 4, None


def _broken_link(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "ape" / "link.png").symlink_to("nowhere.png")
    return "a link to nothing", None, False


def _loop(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "ape" / "loop").symlink_to(data)
    return "a link to the folder in itself", None, None


def _folder_called_png(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "ape" / "9.png").mkdir()
    return "a folder called 9.png", 4, True


def _splits(rng: Random, data: Path) -> Made:
    write_images(data / "train", ("ape", "bee"), 2)
    write_images(data / rng.choice(("test", "val", "validation")), ("ape", "bee"), 3)
    return "two splits", 4, True


def _split_without_a_class(rng: Random, data: Path) -> Made:
    write_images(data / "train", ("ape", "bee"), 2)
    write_images(data / "test", ("bee",), 2)
    return "a split without one of the classes", 4, True


def _no_images(rng: Random, data: Path) -> Made:
    data.mkdir()
    if rng.random() < 0.5:
        (data / "ape").mkdir()
    return "no images", None, False


def _metadata(rng: Random, data: Path) -> Made:
    data.mkdir()
    rows = []
    for i in range(4):
        picture(i).save(data / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "label": rng.choice(("ape", "bee", ""))})
    how = rng.choice(METADATA)
    if how == "one row fewer":
        rows = rows[:-1]
    if how == "a row of no file":
        rows.append({"file_name": "gone.png", "label": "ape"})
    if how == "two rows of a file":
        rows.append(rows[0])
    if how == "numbers":
        rows = [{**row, "label": str(i % 2)} for i, row in enumerate(rows)]
    if how == "no names":
        rows = [{"label": row["label"]} for row in rows]
    if how == "jsonl":
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(row.values()) for row in rows]
        (data / "metadata.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    count = {"right": 4, "numbers": 4, "jsonl": 4, "one row fewer": 4}.get(how)
    return f"metadata: {how}", count, True if how in ("right", "numbers", "jsonl") else None


def _mixed(rng: Random, data: Path) -> Made:
    write_images(data, ("ape", "bee"), 2)
    (data / "rows.parquet").write_bytes(b"PAR1")
    return "images beside a damaged parquet file", None, None


def _odd_files(rng: Random, data: Path) -> Made:
    write_images(data, ("ape",), 1)
    chosen = rng.sample(FILES, 3)
    for i, name in enumerate(chosen):
        picture(i).save(data / "ape" / name, "PNG")
    return f"files called {', '.join(map(repr, chosen))}", 4, True


MAKERS: tuple[Callable[[Random, Path], Made], ...] = (
    *(
        _named,
        _named,
        _named_as_splits,
        _named_as_splits,
        _one_class,
        _flat,
        _empty_class,
        _nested,
        _deep,
        _hidden,
        _other_files,
    ),
    *(_linked_file, _linked_folder, _linked_class, _broken_link, _loop, _folder_called_png, _splits),
    *(_split_without_a_class, _no_images, _metadata, _metadata, _metadata, _mixed, _odd_files, _odd_files),
)


def make(rng: Random, world: World, folder: Path) -> Case:
    """A merge or an evaluation on an odd folder of images."""
    family = rng.choice(("vit", "vit", "vit", "timm-resnet"))  # those of a vit are the fastest
    parents = world.families[family]
    above = folder / rng.choice(("in", "in", "a b", "[x]", "train", "test", "ünï", "a:b", "in.png", "x.parquet"))
    above.mkdir()
    data = above / rng.choice(("data", "data", "d:train", "[d]", "d *", "test", "d@1"))
    told, count, succeeds = rng.choice(MAKERS)(rng, data)
    told = f"{family}: {told}, in {above.name}/{data.name}"
    if rng.random() < 0.4:
        return Case(told, ["eval", world.merges["full-vit"][0], "--data", data, "--json"])
    command = ["merge", *parents, "--data", data, "-o", OUT]
    return Case(told, command, images=count, succeeds=succeeds)

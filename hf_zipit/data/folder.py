"""A local folder or parquet file as a data set: which files it holds, their splits, and what is left out.

`datasets` infers splits from parts of names, and then leaves out all other files without a word. Here every file that
holds images is found first, and belongs to a split.
"""

import glob
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_zipit.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SPLITS = {  # names of folders and parquet files -> split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
ALL = "train"  # the split of files that are not divided, as in `datasets`
_SPLIT_FILE = re.compile(rf"({'|'.join(SPLITS)})(?:[-._ 0-9].*)?", re.IGNORECASE)
_log = logging.getLogger("hf_zipit")


@dataclass(frozen=True)
class _Files:
    """The files of a folder, by kind, relative to it; hidden ones are left out, as everywhere.

    Attributes:
        root: the folder.
        images: image files that `datasets` reads.
        tables: parquet files.
        metadata: files that describe the images beside them.
        linked: folders that are symbolic links, which patterns do not follow.
    """

    root: Path
    images: list[Path]
    tables: list[Path]
    metadata: list[Path]
    linked: list[Path]

    @classmethod
    def of(cls, root: Path) -> "_Files":
        """Walk a folder; links to folders are followed, each folder once."""
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

        found = cls(root, [], [], [], [])
        seen = {root.resolve()}
        for folder, inside, names in os.walk(root, followlinks=True):
            here = Path(folder)
            kept = [name for name in sorted(inside) if not name.startswith((".", "__"))]
            inside[:] = [name for name in kept if (here / name).resolve() not in seen]
            seen.update((here / name).resolve() for name in inside)
            found.linked.extend(here / name for name in inside if (here / name).is_symlink())
            for name in sorted(names):
                path = (here / name).relative_to(root)
                if name in METADATA:
                    found.metadata.append(path)
                elif not name.startswith(".") and path.suffix.lower() == ".parquet":
                    found.tables.append(path)
                elif not name.startswith(".") and path.suffix.lower() in ImageFolder.EXTENSIONS:
                    found.images.append(path)
        return found


def load_folder(path: Path) -> Any:
    """The splits of a folder, as a `datasets.DatasetDict` or `Dataset`.

    A folder may hold image files, by class if it has a folder for each; parquet files; a clone of a data set on the
    Hub; or what `Dataset.save_to_disk` wrote. Its files are divided into splits only if all of them are: by folders at
    the top (`train/`, `test/`), or by the names of parquet files (`train-00000-of-00001.parquet`).

    Raises:
        DataError: there are neither images nor parquet files, or only some files seem to belong to splits.
    """
    import datasets

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(str(path))
    files = _Files.of(path)
    if not files.images and not files.tables:
        raise DataError(f"{path} holds neither images nor parquet files")
    if not files.tables:
        return _images(files)
    if files.images:
        _log.warning(
            "%s: %d image files beside the parquet files are left out: move them to a folder of their own to read them",
            *(path, len(files.images)),
        )
    if _declares_splits(path):
        stamp = _stamp(path / file for file in (*files.tables, Path("README.md")))
        cache = Path(datasets.config.HF_DATASETS_CACHE, "hf_zipit", stamp)  # a name would choose one of its configs
        loaded = datasets.load_dataset(str(path), cache_dir=str(cache))
        read, found = sum(map(len, loaded.values())), _row_count(path / table for table in files.tables)
        if read < found:
            _log.warning(
                "%s: README.md states splits with %d of its %d rows; the others are left out", path, read, found
            )
        return loaded
    parts = [(_split_of_table(table), path / table) for table in files.tables]
    return _tables(_divided(path, parts))


def load_table(path: Path) -> Any:
    """One parquet file as a `datasets.DatasetDict` with one split."""
    return _tables({ALL: [path]})


def _tables(splits: dict[str, list[Path]]) -> Any:
    import datasets

    patterns = {split: [glob.escape(str(file)) for file in files] for split, files in splits.items()}
    stamp = _stamp(file for files in splits.values() for file in files)
    return datasets.load_dataset("parquet", stamp, data_files=patterns)


def _images(files: _Files) -> Any:
    """Image files as splits; their classes are the folders they lie in, unless metadata files describe them."""
    folders = _split_folders(files)
    if files.metadata:
        return _described(files, folders or {ALL: [Path()]})
    depths = {len(image.parts) - bool(folders) for image in files.images}
    if len(depths) > 1:
        _log.info("%s: its images lie at different depths, so its folders are not taken as classes", files.root)
    tops = {folder: split for split, mine in folders.items() for folder in mine}
    parts = {split: [image for image in files.images if tops[Path(image.parts[0])] == split] for split in folders}
    return _listed(files.root, parts or {ALL: files.images}, in_classes=len(depths) == 1 and depths != {1})


def _listed(root: Path, splits: dict[str, list[Path]], in_classes: bool) -> Any:
    """The named image files, each in the class that its folder is called, as a `datasets.DatasetDict`."""
    import datasets

    features: dict[str, Any] = {"image": datasets.Image()}
    if in_classes:
        names = sorted({image.parent.name for images in splits.values() for image in images})
        features["label"] = datasets.ClassLabel(names=names)
    loaded = datasets.DatasetDict()
    for split, images in splits.items():
        ordered = sorted(images, key=lambda image: str(root / image))
        columns = {"image": [str(root / image) for image in ordered], "label": [i.parent.name for i in ordered]}
        held = {key: columns[key] for key in features}
        loaded[split] = datasets.Dataset.from_dict(held, features=datasets.Features(features))
    return loaded


def _described(files: _Files, folders: dict[str, list[Path]]) -> Any:
    """The images that metadata files describe, read by `datasets`; those that they leave out are logged."""
    import datasets

    patterns = {
        split: [f"{glob.escape(str(place))}/**" for folder in mine for place in _places(files, files.root / folder)]
        for split, mine in folders.items()
    }
    stamp = _stamp(files.root / file for file in (*files.images, *files.metadata))
    loaded = datasets.load_dataset("imagefolder", stamp, data_files=patterns)
    _say_missing(files, loaded)
    return loaded


def _places(files: _Files, folder: Path) -> list[Path]:
    """A folder, and the links to folders in it."""
    return [folder, *(link for link in files.linked if link.is_relative_to(folder))]


def _split_folders(files: _Files) -> dict[str, list[Path]]:
    """Split -> the folders at the top that hold it; empty if the folders at the top are classes.

    Raises:
        DataError: a folder is named like a split and holds folders, but not everything lies in such folders.
    """
    tops = {image.parts[0] if len(image.parts) > 1 else "" for image in files.images}
    named = [top for top in sorted(tops) if top.lower() in SPLITS]
    if not named:
        return {}
    if len(named) == len(tops):
        return {
            SPLITS[top.lower()]: [Path(t) for t in named if SPLITS[t.lower()] == SPLITS[top.lower()]] for top in named
        }
    nested = next((i.parts[0] for i in files.images if i.parts[0] in named and len(i.parts) > 2), None)
    if nested is not None:
        raise DataError(
            f"{files.root}: '{nested}' looks like a split, but images lie outside of such folders too; name the folder "
            f"that you mean, e.g. {files.root / nested}"
        )
    _log.info("%s: its folders are classes, also %s", files.root, ", ".join(named))
    return {}


def _divided(root: Path, parts: Sequence[tuple[str | None, Path]]) -> dict[str, list[Path]]:
    """Parquet files by split; all are one split if none is named like one.

    Raises:
        DataError: some are named like splits, and others are not.
    """
    unnamed = [file for split, file in parts if split is None]
    if len(unnamed) == len(parts):
        return {ALL: unnamed}
    if unnamed:
        named = next(file for split, file in parts if split is not None)
        raise DataError(
            f"{root}: {named.name} is named like a split and {unnamed[0].name} is not; rename one of them, or give the "
            "file that you mean"
        )
    splits = {split: [file for other, file in parts if other == split] for split in dict.fromkeys(SPLITS.values())}
    return {split: found for split, found in splits.items() if found}


def _split_of_table(table: Path) -> str | None:
    """The split that a parquet file is named after, or the folder at the top that it lies in."""
    found = _SPLIT_FILE.fullmatch(table.stem)
    name = found[1] if found else table.parts[0]
    return SPLITS.get(name.lower())


def _declares_splits(path: Path) -> bool:
    """Whether a README states the splits, as on the Hub."""
    readme = path / "README.md"
    return readme.is_file() and "data_files:" in readme.read_text(encoding="utf-8", errors="replace")


def _row_count(tables: Iterable[Path]) -> int:
    """The number of rows in parquet files, from their footers."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(table).num_rows for table in tables)


def _say_missing(files: _Files, loaded: Any) -> None:
    """Warn if the metadata files of a folder leave out some of its images."""
    read = sum(map(len, loaded.values()))
    if read >= len(files.images):
        return
    _log.warning(
        "%s: %d of %d images are read, the others are left out; %s does not list them",
        *(files.root, read, len(files.images), files.metadata[0].name),
    )


def _stamp(files: Iterable[Path]) -> str:
    """Identifies files by size, times and place on the disk, so that nothing that was cached of older ones is used.

    Raises:
        DataError: `datasets` would read another path.
    """
    out = hashlib.sha256()
    for file in files:
        if os.path.expandvars(file) != str(file):
            raise DataError(f"{file} holds the name of an environment variable, which `datasets` replaces: rename it")
        about = file.stat()
        out.update(f"{file} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns} {about.st_ino};".encode())
    return out.hexdigest()[:32]

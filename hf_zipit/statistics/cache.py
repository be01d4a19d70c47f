"""Statistics on disk, keyed by content: a later merge of the same models on the same images reads them back."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_zipit import __version__
from hf_zipit.data.batches import Passes
from hf_zipit.data.hashing import tensor_digest
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.statistics.moments import AnyMoments, Moments, ReferenceMoments
from hf_zipit.statistics.probes import POSITIONS

LIMIT = 10 * 2**30  # bytes; beyond it the least recently used statistics are removed
ABOUT = "about.json"
_log = logging.getLogger("hf_zipit")


def cache_folder() -> Path:
    """The cache folder: `HF_ZIPIT_CACHE`, or `hf_zipit` in the Hugging Face home (`HF_HOME`)."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_ZIPIT_CACHE") or Path(HF_HOME) / "hf_zipit").expanduser()


@dataclass(frozen=True)
class CacheEntry:
    """The cached statistics of one set of models on one set of images.

    Attributes:
        folder: where they are.
        models: the models' names.
        data: the names of the data sets.
        spaces: the number of spaces.
        size: bytes on disk.
        used: when they were last used, in seconds since the epoch.
    """

    folder: Path
    models: tuple[str, ...]
    data: tuple[str, ...]
    spaces: int
    size: int
    used: float

    @classmethod
    def of(cls, folder: Path) -> "CacheEntry":
        """The entry in a folder of the cache."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            used = (folder / ABOUT).stat().st_mtime
        except (OSError, ValueError):
            about = {}
            used = 0.0
        files = list(folder.glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        models = tuple(about.get("models", ()))
        data = tuple(about.get("data", ()))
        return cls(folder, models, data, spaces=len(files), size=size, used=used)


def entries() -> list[CacheEntry]:
    """All entries of the cache, most recently used first."""
    found = [CacheEntry.of(path) for path in cache_folder().glob("statistics/*") if path.is_dir()]
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Empty the cache; returns the bytes freed."""
    freed = sum(entry.size for entry in entries())
    shutil.rmtree(cache_folder() / "statistics", ignore_errors=True)
    return freed


class StatisticsCache:
    """The statistics of some models on some images, one file per feature space.

    The key is a hash of the content: the models' weights and structure, the chosen images and their preprocessing, the
    spec, how moments are accumulated, and the version of this package. A file that cannot be read counts as missing. If
    files cannot be written, a warning is logged. Only the main process writes. A space counts as found if every
    process could read it.

    Args:
        sources: the models, in order.
        binding: their spaces and spec.
        passes: the images.
        compat: whether moments are accumulated as the authors' code does.
    """

    def __init__(self, sources: Sequence[Source], binding: Binding, passes: Passes, compat: bool) -> None:
        self.accelerator = passes.accelerator
        self.device = passes.device
        self.compat = compat
        self.models = len(sources)
        self.about = {"models": [s.name for s in sources], "data": [images.name for images in passes.images]}
        content = {
            "version": __version__,
            "models": [[tensor_digest(s.model.state_dict().items()), repr(s.model), repr(s.backbone)] for s in sources],
            "data": [images.fingerprint() for images in passes.images],
            "preprocessing": [repr(sorted(sources[0].preprocessing.items())), type(sources[0].processor).__qualname__],
            "spec": binding.spec.text,
            "device": passes.device.type,
            "sums": ["float32, by batch", passes.batch_size] if compat else ["float64", POSITIONS],
        }
        self.folder = cache_folder() / "statistics" / _hash(content)

    def read(self, spaces: Iterable[FeatureSpace]) -> dict[str, SpaceStatistics]:
        """The statistics of those spaces that every process finds, by name."""
        wanted = list(spaces)
        found = {space.name: self._load(space) for space in wanted}
        flags = torch.tensor([found[space.name] is not None for space in wanted], device=self.accelerator.device)
        agreed = _total(flags, self.accelerator) == self.accelerator.num_processes
        if agreed.any():
            with suppress(OSError):
                (self.folder / ABOUT).touch()
        known = [s for space, yes in zip(wanted, agreed.tolist(), strict=True) if yes and (s := found[space.name])]
        return {statistics.space.name: statistics for statistics in known}

    def write(self, statistics: Mapping[str, SpaceStatistics]) -> None:
        """Write statistics. Each file is written atomically."""
        if not self.accelerator.is_main_process:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _replace(self.folder / ABOUT, lambda path: path.write_text(json.dumps(self.about), encoding="utf-8"))
            for one in statistics.values():
                _replace(self._file(one.space), partial(save_file, _tensors(one)))
            _shrink(keep=self.folder)
        except (OSError, SafetensorError) as error:
            _log.warning("statistics are not kept in %s: %s", self.folder.parent, error)

    def _file(self, space: FeatureSpace) -> Path:
        return self.folder / f"{_hash(repr(space))[:32]}.safetensors"

    def _load(self, space: FeatureSpace) -> SpaceStatistics | None:
        """The statistics of a space; `None` if its file cannot be read."""
        try:
            tensors = {name: value.to(self.device) for name, value in load_file(self._file(space)).items()}
        except (OSError, SafetensorError):
            return None
        kind = ReferenceMoments if self.compat else Moments
        moments: list[AnyMoments] = []
        for task in range(len(tensors) // 3):
            mine: dict[str, Any] = {field.name: tensors[f"{field.name}.{task}"] for field in fields(kind)}
            moments.append(kind(**{**mine, "count": int(mine["count"])}))
        return SpaceStatistics(space, (space.size,) * self.models, moments)


def _tensors(statistics: SpaceStatistics) -> dict[str, torch.Tensor]:
    """The fields of every task's moments, named `field.task`."""
    out = {}
    for task, moments in enumerate(statistics.tasks):
        for field, value in vars(moments).items():
            out[f"{field}.{task}"] = torch.as_tensor(value).cpu().contiguous()
    return out


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _total(flags: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """The number of processes that have set each flag."""
    return flags.long() if accelerator.num_processes == 1 else accelerator.reduce(flags.long(), "sum")


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file atomically."""
    begun = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(begun)
        begun.replace(path)
    finally:
        begun.unlink(missing_ok=True)


def _shrink(keep: Path) -> None:
    """Remove the least recently used entries, but for `keep`, until the cache is within its limit."""
    found = entries()
    total = sum(entry.size for entry in found)
    for entry in reversed(found):
        if total > LIMIT and entry.folder != keep:
            shutil.rmtree(entry.folder, ignore_errors=True)
            total -= entry.size

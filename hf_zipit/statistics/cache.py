"""Statistics on disk, keyed by content: a later merge of the same models on the same images reads them back."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load, save

from hf_zipit.data.batches import Passes
from hf_zipit.data.hashing import tensor_digest
from hf_zipit.files.names import MARK
from hf_zipit.files.single import write_file
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding, FeatureSpace
from hf_zipit.statistics.collect import SpaceStatistics
from hf_zipit.statistics.content import content_of, versions
from hf_zipit.statistics.moments import Moments, ReferenceMoments
from hf_zipit.statistics.probes import POSITIONS, SAMPLES, TOKENS

LIMIT = 10 * 2**30  # bytes; beyond it the least recently used statistics are removed
ABOUT = "about.json"
CHECKSUM = "checksum"
_FOLDER = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(rf"about\.json|[0-9a-f]{{32}}\.safetensors|{re.escape(MARK)}\..+|\..+\.safetensors\.\d+")
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

    @property
    def id(self) -> str:
        """The hash of everything that decides the statistics."""
        return self.folder.name

    @classmethod
    def of(cls, folder: Path) -> "CacheEntry":
        """The entry in a folder of the cache; what cannot be read is left out, as another process may remove it."""
        models: tuple[str, ...] = ()
        data: tuple[str, ...] = ()
        used = 0.0
        with suppress(OSError, ValueError, TypeError, KeyError):
            used = (folder / ABOUT).stat().st_mtime
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            models = tuple(map(str, about["models"]))
            data = tuple(map(str, about["data"]))
        sizes = []
        for file in folder.glob("*.safetensors"):
            with suppress(OSError):
                sizes.append(file.stat().st_size)
        return cls(folder, models, data, spaces=len(sizes), size=sum(sizes), used=used)

    def remove(self) -> None:
        """Remove the files of the entry, and its folder unless it holds other files."""
        with suppress(OSError):
            for file in self.folder.iterdir():
                if _FILE.fullmatch(file.name):
                    with suppress(OSError):
                        file.unlink()
            self.folder.rmdir()


def entries() -> list[CacheEntry]:
    """All entries of the cache, most recently used first."""
    folders = (path for path in cache_folder().glob("statistics/*") if _FOLDER.fullmatch(path.name) and path.is_dir())
    return sorted(map(CacheEntry.of, folders), key=lambda entry: -entry.used)


def clear() -> int:
    """Empty the cache; returns the bytes freed. Files that are not of the cache stay."""
    found = entries()
    for entry in found:
        entry.remove()
    with suppress(OSError):
        (cache_folder() / "statistics").rmdir()
    left = {entry.folder: entry.size for entry in entries()}
    return sum(entry.size - left.get(entry.folder, 0) for entry in found)


class StatisticsCache:
    """The statistics of some models on some images, one file per feature space.

    The key is a hash of the content: all that the models compute with (see `content_of`), the chosen images and their
    preprocessing, the spec, how moments are accumulated, and the library versions. Each file has a checksum: one
    that is damaged, or removed by another process, counts as missing. If files cannot be written, a warning is logged.
    Only the main process writes. A space counts as found if every process could read it.

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
        transform = next((source.transform for source in sources if source.transform), None)
        content = {
            "versions": versions(),
            "models": [content_of(source.model) for source in sources],
            "data": [images.fingerprint() for images in passes.images],
            "transform": content_of(transform),
            "spec": binding.spec.text,
            "device": passes.device.type,
            "sums": ["float32, by batch", passes.batch_size]
            if compat
            else ["upper triangle, tokens of stretches", POSITIONS, TOKENS, SAMPLES],
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
            for one in statistics.values():
                tensors = _tensors(one)
                self._keep(self._file(one.space), save({**tensors, CHECKSUM: _checksum(tensors)}))
            self._keep(self.folder / ABOUT, json.dumps(self.about))
            _shrink(keep=self.folder)
        except (OSError, SafetensorError) as error:
            _log.warning(
                "statistics are not kept in %s: %s; name another folder in HF_ZIPIT_CACHE, or use --no-cache",
                *(self.folder.parent, error),
            )

    def _keep(self, file: Path, content: str | bytes) -> None:
        """Write a file of the entry, whose folder another process may have removed in the meantime."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(file, content)

    def _file(self, space: FeatureSpace) -> Path:
        return self.folder / f"{_hash(repr(space))[:32]}.safetensors"

    def _load(self, space: FeatureSpace) -> SpaceStatistics | None:
        """The statistics of a space; `None` if its file cannot be read, or does not hold what was written."""
        kind = ReferenceMoments if self.compat else Moments
        try:
            tensors = load(self._file(space).read_bytes())  # not mapped: another process may remove the file
            checksum = tensors.pop(CHECKSUM)
            if not torch.equal(checksum, _checksum(tensors)):
                return None
            found: dict[str, Any] = {f.name: tensors[f.name].to(self.device) for f in fields(kind)}
            moments = kind(**{**found, "count": int(found["count"])})
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        return SpaceStatistics(space, space.sizes(self.models), moments)


def _tensors(statistics: SpaceStatistics) -> dict[str, torch.Tensor]:
    """The fields of the moments."""
    fields_of = vars(statistics.moments).items()
    return {field: torch.as_tensor(value).cpu().contiguous() for field, value in fields_of}


def _checksum(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(tensor_digest(sorted(tensors.items())))), dtype=torch.uint8)


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _total(flags: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """The number of processes that have set each flag."""
    return flags.long() if accelerator.num_processes == 1 else accelerator.reduce(flags.long(), "sum")


def _shrink(keep: Path) -> None:
    """Remove the least recently used entries, but for `keep`, until the cache is within its limit."""
    found = entries()
    total = sum(entry.size for entry in found)
    for entry in reversed(found):
        if total > LIMIT and entry.folder != keep:
            entry.remove()
            total -= entry.size

"""Which folders the app reads and writes. Symbolic links count as what they lead to."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_zipit.data.rows import hub_data
from hf_zipit.errors import OptionError
from hf_zipit.files.documents import is_plain
from hf_zipit.saving.license import card_data
from hf_zipit.sources.adapters import adapted_from
from hf_zipit.sources.download import HUB_ID

DEEP = 3  # levels of folders in which models and images are looked for
MOST = 200  # of them that are offered
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class Places:
    """The working folder, where everything is read and written, and further folders that may be read.

    Args:
        folder: the working folder. Relative paths are relative to it.
        allowed: further folders to read.

    Raises:
        OptionError: one of them does not exist.

    >>> Places(Path("work")).model("user/pets")  # doctest: +SKIP
    'user/pets'
    """

    def __init__(self, folder: Path, allowed: Sequence[Path] = ()) -> None:
        for path in (folder, *allowed):
            if not path.is_dir():
                raise OptionError(f"there is no folder {path}")
        self.folder = Path(os.path.realpath(folder))
        self.readable = (self.folder, *(Path(os.path.realpath(path)) for path in allowed))

    def model(self, given: str) -> str:
        """A model as the rest of the package takes it: the path of a folder that may be read, or a Hub id.

        Raises:
            OptionError: it is neither, or the folder may not be read.
        """
        place = self._read(given)
        if place is None:
            if not HUB_ID.fullmatch(given):
                raise OptionError(f"there is no model at '{given}': give a folder below {self.folder}, or a Hub id")
            return self._on_hub(given)
        named = _base_of(place)
        for base in (Path(named).absolute(), place / named) if named else ():
            if base.is_dir():
                self._check(base, f"{given} was made of {named}, which")
        return str(place)

    def data(self, given: str) -> str:
        """Images as the rest of the package takes them: a path that may be read or a Hub id, with or without `:split`.

        Raises:
            OptionError: it is neither, or the path may not be read.
        """
        place = self._read(given)
        if place is not None:
            return str(place)
        path, colon, split = given.rpartition(":")
        place = self._read(path) if colon else None
        if place is not None:
            return f"{place}:{split}"
        given = self._on_hub(given)
        if hub_data(given) is None or ".." in given:
            raise OptionError(f"there are no images at '{given}': give a path below {self.folder}, or a Hub id")
        return given

    def result(self, given: str) -> Path:
        """The folder for a result: below the working folder, whether it exists or not.

        Raises:
            OptionError: it lies elsewhere, or is the working folder itself.
        """
        if not given.strip() or not is_plain(given):
            raise OptionError("give the result a name, such as merged")
        place = Path(os.path.realpath(self.folder / given.strip()))
        if self.folder not in place.parents:
            raise OptionError(f"'{given}' is not below {self.folder}, where results are written: choose another name")
        return place

    def free_name(self, name: str = "merged") -> str:
        """A name for a result that does not exist yet."""
        numbers = (name if number == 1 else f"{name}-{number}" for number in range(1, MOST * MOST))
        return next(one for one in numbers if not os.path.lexists(self.folder / one))

    def models(self) -> list[str]:
        """The folders below the working folder that hold a model."""
        return [self._shown(path) for path, names in self._walk() if "config.json" in names][:MOST]

    def image_sets(self) -> list[str]:
        """The folders below the working folder that hold images, by class or not, or parquet files."""
        found: dict[Path, None] = {}
        for path, names in self._walk():
            kinds = {Path(name).suffix.lower() for name in names}
            if ".parquet" in kinds:
                found[path] = None
            elif kinds & PICTURES and "config.json" not in names:
                above = path.parent if path != self.folder and path.parent != self.folder else path
                found[above] = None  # images by class lie one level deeper
        return [self._shown(path) for path in found][:MOST]

    def _walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Folders below the working folder and the names of the files in them; hidden ones and links are left out."""
        for root, folders, names in os.walk(self.folder):
            here = Path(root)
            deep = len(here.relative_to(self.folder).parts)
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep < DEEP else []
            yield here, names

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _read(self, given: str) -> Path | None:
        """The real path of what exists and may be read; `None` if nothing is there.

        Raises:
            OptionError: it may not be read, or the text is no path.
        """
        if not given.strip() or not is_plain(given):
            raise OptionError("give models and images as paths or Hub ids, without control characters")
        path = self.folder / os.path.expanduser(given)
        outside = not self._inside(path)
        if outside and (Path(given).is_absolute() or given.startswith(("~", ".")) or ".." in Path(given).parts):
            self._check(path, given)  # said before anything is known of what lies there
        try:
            exists = path.exists()
        except OSError as error:
            raise OptionError(f"'{given}' cannot be read: {error.strerror}") from None
        if not exists:
            return None
        self._check(path, given)
        return Path(os.path.realpath(path))

    def _on_hub(self, given: str) -> str:
        """A Hub id, unless the rest of the package would read a folder of this name in the current one instead."""
        for path in (Path(given), Path(given.rpartition(":")[0] or given)):
            if path.exists():
                self._check(path.absolute(), given)
        return given

    def _inside(self, path: Path) -> bool:
        real = Path(os.path.realpath(path))
        return any(root == real or root in real.parents for root in self.readable)

    def _check(self, path: Path, given: str) -> None:
        """Refuse a path that leads elsewhere, by itself or by a link below it."""
        if not self._inside(path):
            raise OptionError(
                f"{given} is outside {' and '.join(map(str, self.readable))}: start the app with --folder or "
                "--allow to let it read there"
            )
        for link in _links(Path(os.path.realpath(path))):
            if not self._inside(link):
                raise OptionError(
                    f"{given} holds {link.name}, a link to {os.path.realpath(link)}, which is outside "
                    f"{' and '.join(map(str, self.readable))}: start the app with --allow to let it read there"
                )


def _links(root: Path) -> Iterator[Path]:
    """All symbolic links below a folder, and below the folders that they lead to."""
    seen: set[str] = set()
    left = [str(root)]
    while left:
        for folder, inside, names in os.walk(left.pop()):
            if os.path.realpath(folder) in seen:
                inside[:] = []
                continue
            seen.add(os.path.realpath(folder))
            for path in (Path(folder, name) for name in (*inside, *names)):
                if path.is_symlink():
                    yield path
                    left.append(os.path.realpath(path))


def _base_of(folder: Path) -> str | None:
    """The model that the one in a folder says it was made of."""
    try:
        named = adapted_from(folder) or card_data(folder).get("base_model")
    except (ValueError, OSError, json.JSONDecodeError):  # said when the model is read
        return None
    return named if isinstance(named, str) else None

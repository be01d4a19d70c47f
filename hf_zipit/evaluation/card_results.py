"""The results of an evaluation in the card of a saved merge."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from hf_zipit.data.rows import display_name
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.classification import Row
from hf_zipit.evaluation.report import plot
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.saving.card import with_results

_log = logging.getLogger("hf_zipit")
PICTURE = "results.png"


def card_of(folder: str | Path) -> Path:
    """The card of a saved merge.

    Raises:
        OptionError: the folder has no README.md.
    """
    file = Path(folder) / "README.md"
    if not file.is_file():
        raise OptionError(f"{folder} has no README.md: only the card of a local folder can be updated")
    return file


def add_results(folder: str | Path, config: ZipItConfig, rows: Sequence[Row], data: Sequence[str | Path]) -> Path:
    """Put a table, a picture and the Hub's metadata of the results into a merge's README.md; the rest of it is kept.

    Args:
        folder: the saved merge.
        config: its config.
        rows: what `evaluate` returned.
        data: the data sets it was given.

    Returns:
        The README.md.

    Raises:
        OptionError: the folder has no README.md.

    >>> add_results("merged", merged.config, rows, ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    file = card_of(folder)
    picture: str | None = PICTURE
    try:
        plot({"merged": rows}, (config.zipit or {}).get("spaces", []), file.parent / PICTURE)
    except OptionError as error:
        _log.info("no picture in the card: %s", error)
        picture = None
    results = {"data": [display_name(ref) for ref in data], "rows": [row.to_dict() for row in rows], "plot": picture}
    text = with_results(file.read_text(encoding="utf-8"), config, results)
    begun = file.with_name(f".README.md.{os.getpid()}")
    begun.write_text(text, encoding="utf-8")
    begun.replace(file)
    return file

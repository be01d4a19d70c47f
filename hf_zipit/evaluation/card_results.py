"""Add the results of an evaluation to the model card of a saved merge."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hf_zipit.data.rows import display_name
from hf_zipit.errors import OptionError
from hf_zipit.evaluation.report import plot
from hf_zipit.evaluation.results import Result
from hf_zipit.files.single import write_file
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.saving.card_results import with_results
from hf_zipit.saving.provenance import Provenance

_log = logging.getLogger("hf_zipit")
PICTURE = "results.png"


def card_of(folder: str | Path) -> Path:
    """The path of a saved merge's model card.

    Raises:
        OptionError: the folder has no README.md.
    """
    file = Path(folder) / "README.md"
    if not file.is_file():
        raise OptionError(f"{folder} has no README.md: only the model card in a local folder can be updated")
    return file


def add_results(folder: str | Path, config: ZipItConfig, rows: Sequence[Result], data: Sequence[str | Path]) -> Path:
    """Write a table, a plot and Hub metadata of the results into a merge's README.md; the rest of the file is kept.

    Args:
        folder: Folder of the saved merge.
        config: Config of the merge.
        rows: Results that `evaluate` returned.
        data: Data sets that `evaluate` was given.

    Returns:
        The path of the README.md.

    Raises:
        OptionError: the folder has no README.md.

    >>> add_results("merged", merged.config, rows, ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    file = card_of(folder)
    picture: str | None = PICTURE
    try:
        if any(row.joint is None for row in rows):
            raise OptionError("there is no joint accuracy to draw")
        plot({"merged": rows}, Provenance.of(config).spaces, file.parent / PICTURE)
    except (OptionError, KeyError, TypeError) as error:  # the record of the merged spaces may be damaged
        _log.info("the model card gets no plot: %s", error)
        picture = None
    results = {"data": [display_name(ref) for ref in data], "rows": [row.to_dict() for row in rows], "plot": picture}
    text = with_results(file.read_text(encoding="utf-8"), config, results)
    write_file(file, text)
    return file

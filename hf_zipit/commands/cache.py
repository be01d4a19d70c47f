"""`hf-zipit cache`."""

from datetime import datetime
from typing import Annotated

import typer

from hf_zipit.commands.options import Json
from hf_zipit.commands.terminal import show, show_json


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all kept statistics.")] = False,
    as_json: Json = False,
) -> None:
    """The statistics that are kept on disk, and where; `--clear` removes them."""
    from hf_zipit.statistics import cache as kept
    from hf_zipit.text import si, table

    folder = kept.cache_folder()
    if clear:
        freed = kept.clear()
        show_json({"folder": str(folder), "freed": freed}) if as_json else show(f"{si(freed, 'B')} freed")
        return
    found = kept.entries()
    if as_json:
        entries = [
            {"models": e.models, "data": e.data, "spaces": e.spaces, "bytes": e.size, "used": e.used} for e in found
        ]
        show_json({"folder": str(folder), "limit": kept.LIMIT, "entries": entries})
        return
    lines = [
        [", ".join(e.models), ", ".join(e.data), str(e.spaces), si(e.size, "B"), f"{_date(e.used)}"] for e in found
    ]
    total = f"{si(sum(e.size for e in found), 'B')} of at most {si(kept.LIMIT, 'B')} in {folder}"
    show(f"{table(['models', 'data', 'spaces', 'size', 'last used'], lines)}\n\n{total}" if found else total)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")

"""`hf-zipit cache`."""

from datetime import datetime
from typing import Annotated

import typer

from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json
from hf_zipit.commands.terminal import show


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all cached statistics.")] = False,
    as_json: Json = False,
) -> None:
    """Show the activation statistics that are cached on disk, or remove them."""
    from hf_zipit.statistics import cache as statistics
    from hf_zipit.text import si, table

    folder = statistics.cache_folder()
    if clear:
        freed = statistics.clear()
        show_json("cache", {"folder": str(folder), "freed": freed}) if as_json else show(f"{si(freed, 'B')} freed")
        return
    found = statistics.entries()
    if as_json:
        keys = ("id", "models", "data", "spaces")
        entries = [{**{k: getattr(e, k) for k in keys}, "bytes": e.size, "used": e.used} for e in found]
        show_json("cache", {"folder": str(folder), "limit": statistics.LIMIT, "entries": entries})
        return
    lines = [
        [e.id[:8], ", ".join(e.models), ", ".join(e.data), str(e.spaces), si(e.size, "B"), _date(e.used)] for e in found
    ]
    total = f"{si(sum(e.size for e in found), 'B')} of at most {si(statistics.LIMIT, 'B')} in {folder}"
    show(f"{table(['id', 'models', 'data', 'spaces', 'size', 'last used'], lines)}\n\n{total}" if found else total)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")

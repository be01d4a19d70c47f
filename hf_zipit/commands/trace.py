"""`hf-zipit trace`."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Json, Model
from hf_zipit.commands.terminal import show
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access

_log = logging.getLogger("hf_zipit")


@takes_access
def trace(
    model: Model,
    access: Access,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Spec file to write. Default: print the spec.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Derive the spec of a model of any class from one forward pass, and check it."""
    from hf_zipit.files.place import check_place
    from hf_zipit.files.single import write_file
    from hf_zipit.find_spec import traced, why_uncut
    from hf_zipit.sources.load import load_or_build

    if out is not None and out.exists():
        raise OptionError(f"{out} already exists: choose another file")
    if out is not None:
        check_place(out.parent)
    source = load_or_build(model, access)
    text, held = traced(source)
    _log.info("traced and checked: %s", held)
    if why := why_uncut(source, text):
        _log.warning("%s", why)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, text)
    if as_json:
        show_json("trace", {"file": None if out is None else str(out), "spec": text, "held": held})
    else:
        show(out or text.rstrip("\n"))

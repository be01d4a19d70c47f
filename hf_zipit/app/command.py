"""`hf-zipit app`."""

import logging
import os
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.terminal import show
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access

HERE = ("127.0.0.1", "localhost", "::1")
_log = logging.getLogger("hf_zipit")


@takes_access
def app(
    access: Access,
    folder: Annotated[
        Path,
        typer.Option(
            show_default=False,
            help="Working folder: models and images are read there, results written. Default: the current one.",
        ),
    ] = Path("."),
    allow: Annotated[list[Path] | None, typer.Option(help="Further folder that may be read. Can be repeated.")] = None,
    host: Annotated[
        str,
        typer.Option(
            show_default=False,
            help=f"Address to listen at; others than this machine's let anybody in. Default: {HERE[0]}.",
        ),
    ] = HERE[0],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen at. Default: the first free one from 7860.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Diagnose, merge and try models in the browser (extra `app`).

    One thing runs at a time, and can be cancelled. Only this machine can open the page, unless --host says otherwise.
    Files are read and written below the working folder alone.
    """
    if find_spec("gradio") is None:
        raise OptionError("the app needs gradio: pip install 'hf-zipit[app]'")
    from hf_zipit.app.job import warm_up
    from hf_zipit.app.places import Places
    from hf_zipit.app.session import Session

    session = Session(Places(folder, allow or ()), access)
    try:
        _prepare(session.scratch)
        warm_up()
        if host not in HERE:
            _log.warning(
                "--host %s: whoever reaches this machine can merge, read what is below %s, and upload with your access "
                "token",
                *(host, session.places.folder),
            )
        _serve(session, host, port, open_browser)
    finally:
        session.close()


def _prepare(scratch: Path) -> None:
    """Keep gradio from reporting its use, and from writing elsewhere; read when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(scratch)
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_SHARE"):
        os.environ.pop(name, None)


def _serve(session: Any, host: str, port: int | None, open_browser: bool) -> None:
    """Serve the page until the program is interrupted."""
    from hf_zipit.app.page import LOOK, page

    blocks = page(session)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(session.scratch)],
            run_history=False,  # which would keep tokens in the browser
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            **LOOK,
        )
    except OSError as error:
        raise OptionError(f"cannot listen at {host}, port {port or '7860 and above'}: {error}") from None
    show(f"{address} serves {session.places.folder}; Ctrl+C ends it")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)

"""Progress bars on stderr, on the main process only; they obey the Hub's settings for bars."""

from collections.abc import Iterable
from typing import TypeVar

from accelerate import Accelerator
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

T = TypeVar("T")


def progress(items: Iterable[T], label: str, accelerator: Accelerator | None = None) -> Iterable[T]:
    """Show a bar while iterating."""
    quiet = accelerator is not None and not accelerator.is_main_process
    bar: Iterable[T] = tqdm(items, desc=label, disable=True if quiet else None, leave=False)  # type: ignore[no-untyped-call]
    return bar

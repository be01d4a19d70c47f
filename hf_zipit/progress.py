"""Progress bars on stderr, on the main process only. The environment variables of the Hub switch them off."""

from collections.abc import Iterable
from typing import TypeVar

from accelerate import Accelerator
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

T = TypeVar("T")


def progress(items: Iterable[T], label: str, accelerator: Accelerator | None = None) -> Iterable[T]:
    """The same items, with a progress bar while they are iterated over.

    Args:
        items: what to iterate over.
        label: shown beside the bar.
        accelerator: if given, only its main process shows a bar.
    """
    quiet = accelerator is not None and not accelerator.is_main_process
    bar: Iterable[T] = tqdm(items, desc=label, disable=True if quiet else None, leave=False)  # type: ignore[no-untyped-call]
    return bar

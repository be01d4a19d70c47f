"""Progress bars on stderr, on the main process only. The environment variables of the Hub switch them off."""

from collections.abc import Iterable, Sized
from typing import TypeVar

from accelerate import Accelerator
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

T = TypeVar("T")


def progress(
    items: Iterable[T],
    label: str,
    accelerator: Accelerator | None = None,
    images: int | None = None,
    total: int | None = None,
) -> Iterable[T]:
    """The same items, with a progress bar while they are iterated over. A single item has none.

    Args:
        items: what to iterate over.
        label: shown beside the bar.
        accelerator: if given, only its main process shows a bar.
        images: how many images an item stands for. If given, the bar counts images, and shows how many are read per
            second.
        total: the number of items, if they have no length.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    hidden = total == 1 or (accelerator is not None and not accelerator.is_main_process)
    bar: Iterable[T] = tqdm(  # type: ignore[no-untyped-call]
        items,
        desc=label,
        disable=True if hidden else None,
        leave=False,
        total=total,
        unit=" steps" if images is None else " images",
        unit_scale=images or False,
    )
    return bar

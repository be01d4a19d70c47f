"""Progress bars on stderr, on the main process only. The environment variables of the Hub switch them off."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from accelerate import Accelerator
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

T = TypeVar("T")
Watcher = Callable[[str, int, int | None], None]  # (label, items done, items in all or `None` if that is unknown)
_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


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
    quiet = accelerator is not None and not accelerator.is_main_process
    bar: Iterable[T] = tqdm(  # type: ignore[no-untyped-call]
        items,
        desc=label,
        disable=True if quiet or total == 1 else None,
        leave=False,
        total=total,
        unit=" steps" if images is None else " images",
        unit_scale=images or False,
    )
    tell = None if quiet else _watcher.get()
    return bar if tell is None else _told(bar, label, total, tell)


@contextmanager
def watched(tell: Watcher) -> Iterator[None]:
    """Tell a function of every step of every progress bar in the block, for programs without a terminal.

    Args:
        tell: called before the first item of a bar, and after each. The last call of a bar has as many items done as
            there are in all, also where an iteration ends early. What it raises ends the iteration.

    >>> with watched(lambda label, done, total: print(label, done, total)):
    ...     for _ in progress(range(2), "Reading"):
    ...         pass
    Reading 0 2
    Reading 1 2
    Reading 2 2
    """
    token = _watcher.set(tell)
    try:
        yield
    finally:
        _watcher.reset(token)


def _told(items: Iterable[T], label: str, total: int | None, tell: Watcher) -> Iterator[T]:
    """The same items; each step is told."""
    tell(label, 0, total)
    done = 0
    try:
        for item in items:
            yield item
            done += 1
            if done != total:
                tell(label, done, total)
    finally:
        tell(label, total or done, total or done)

"""The same function for many items: divided among all processes, and in each of them among its cores."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hf_zipit.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


def work_on_all(
    run: Callable[[Item], Result],
    items: Sequence[Item],
    label: str,
    accelerator: Accelerator | None = None,
) -> list[Result]:
    """What a function returns for every item, in their order.

    The function runs in threads, and only on this process's share of the items. It must not depend on the order.

    Args:
        run: The function. It may raise; the error of the first item that fails is raised on every process.
        items: The items, the same on all processes.
        label: Shown beside the progress bar.
        accelerator: Divides the items among its processes; by default there is one.

    >>> work_on_all(abs, [-1, 2, -3], "Counting")
    [1, 2, 3]
    """
    processes = 1 if accelerator is None else accelerator.num_processes
    rank = 0 if accelerator is None else accelerator.process_index
    mine = range(rank, len(items), processes)
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(mine)))

    def outcome(number: int) -> tuple[int, Result | None, Exception | None]:
        try:
            return number, run(items[number]), None
        except Exception as error:  # the other processes wait for it
            return number, None, error

    if workers == 1:
        found = [outcome(number) for number in progress(mine, label, accelerator)]
    else:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            try:
                found = list(progress(pool.map(outcome, mine), label, accelerator, total=len(mine)))
            except BaseException:  # an interrupt: what has not begun never does
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    if processes > 1:
        found = gather_object(found)
    found.sort(key=lambda one: one[0])
    for _, _, error in found:
        if error is not None:
            raise error
    return [result for _, result, _ in found]  # type: ignore[misc]

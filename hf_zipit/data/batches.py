"""Batches that mix the data sets of all tasks, divided among processes."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_zipit.data.dataset import Images
from hf_zipit.data.images import NO_DATA
from hf_zipit.errors import OptionError
from hf_zipit.progress import progress
from hf_zipit.running import device_of


class _Mixed(Dataset[tuple[Tensor, int, int]]):
    """Several data sets as one, interleaved in proportion to their lengths.

    An item is `(pixels, number of the data set, number of the image in it)`.
    """

    def __init__(self, data_sets: Sequence[Images]) -> None:
        self.data_sets = data_sets
        shares = [((i + 0.5) / len(images), k, i) for k, images in enumerate(data_sets) for i in range(len(images))]
        self.order = [(k, i) for _, k, i in sorted(shares)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        k, i = self.order[index]
        return self.data_sets[k][i], k, i


BATCH = 32  # images of 224 x 224 pixels
LARGEST = 256  # images, if they are small
REMEMBERED = 2**30  # bytes of decoded images that are kept, of all data sets together
GROUP = 64  # images; the more, the closer are the statistics of a group to those of all images
NumberedBatch = tuple[Tensor, Tensor, Tensor]


def batches(data_sets: Sequence[Images], sizes: Sequence[int], accelerator: Accelerator) -> Iterable[NumberedBatch]:
    """This process's share of the batches that mix all data sets.

    The batches do not depend on the number of processes, and no image is repeated to make their number even.

    Args:
        data_sets: the images.
        sizes: of the batches; they add up to the number of images.
        accelerator: divides the batches among the processes.

    Returns:
        `(pixels (B, channels, H, W), number of the data set (B,), number of the image in it (B,))`.
    """
    starts = itertools.accumulate(sizes, initial=0)
    sampler = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]
    loader = DataLoader(_Mixed(data_sets), batch_sampler=sampler)
    prepared: Iterable[NumberedBatch] = accelerator.prepare_data_loader(loader, device_placement=False)
    return prepared


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """The sizes of full batches, and of a rest.

    >>> batch_sizes(10, 4)
    [4, 4, 2]
    """
    whole, rest = divmod(count, batch_size)
    return [batch_size] * whole + ([rest] if rest else [])


def group_sizes(count: int) -> list[int]:
    """The sizes of as few groups as possible of at most `GROUP` images, as equal as possible.

    >>> group_sizes(130)
    [44, 43, 43]
    """
    groups = -(-count // GROUP)
    return [count // groups + (number < count % groups) for number in range(groups)]


def suited_batch(shape: Sequence[int]) -> int:
    """Images per batch: `BATCH`, or more of small images, for which the time between two layers counts.

    Args:
        shape: (channels, height, width) of an image.

    >>> suited_batch((3, 224, 224)), suited_batch((3, 32, 32))
    (32, 256)
    """
    return min(LARGEST, max(BATCH, BATCH * 224 * 224 // (shape[1] * shape[2])))


def remembered(images: Sequence[Images], limit: int = REMEMBERED) -> list[Images]:
    """The same data sets. Each image is decoded once and then kept in memory, if all of them fit into `limit` bytes.

    What is given out are copies: a model may change its input in place.
    """
    sets = [part for one in images for part in (one, one.held) if part is not None]
    if sum(part[0].nbytes * len(part) for part in sets) > limit:
        return list(images)
    held = [one.held and replace(one.held, get=_copies(one.held.get)) for one in images]
    return [replace(one, get=_copies(one.get), held=mine) for one, mine in zip(images, held, strict=True)]


def _copies(get: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    """Copies of what a function returns, which is called once for each number."""
    kept = cache(get)
    return lambda number: kept(number).clone()


def make_accelerator() -> Accelerator:
    """An accelerator that divides batches among processes without repeating images."""
    return Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False, dispatch_batches=False))


class Passes:
    """Passes over the images of all tasks; each process sees its share of the batches.

    Args:
        images: the data sets: one for all tasks, or one per task. Without any, no pass is possible.
        batch_size: images per batch; by default what suits their size, see `suited_batch`.
        device: where the models run; `None` takes the accelerator's device.

    Raises:
        OptionError: `batch_size` is below 1, or the device does not exist.

    >>> passes = Passes(images, batch_size=32)  # doctest: +SKIP
    >>> for pixels, task in passes("Reading activations"): ...  # doctest: +SKIP
    """

    def __init__(self, images: Sequence[Images], batch_size: int | None = None, device: str | None = None) -> None:
        if batch_size is None:
            batch_size = suited_batch(images[0][0].shape) if images else BATCH
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}: it must be at least 1")
        self.images = images
        self.batch_size = batch_size
        self.accelerator = make_accelerator()
        self.device = device_of(device, self.accelerator.device)

    def __call__(self, label: str) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass: `(pixels (B, channels, H, W), number of the data set (B,))`, both on the CPU.

        Raises:
            OptionError: there are no images.
        """
        return ((pixels, task) for pixels, task, _ in self.numbered(label))

    def groups(self, label: str) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass in groups of almost equal size, for what is computed from the statistics of one group at a time.

        The groups have at most `GROUP` images, whatever the batch size, so that it does not affect the result.

        Raises:
            OptionError: there are no images.
        """
        return ((pixels, task) for pixels, task, _ in self._pass(label, group_sizes(self.count)))

    @property
    def count(self) -> int:
        """The number of images in all data sets."""
        return sum(map(len, self.images))

    def numbered(self, label: str) -> Iterable[NumberedBatch]:
        """One pass with the number of every image in its data set; see `batches`.

        Raises:
            OptionError: there are no images.
        """
        return self._pass(label, batch_sizes(self.count, self.batch_size))

    def _pass(self, label: str, sizes: Sequence[int]) -> Iterable[NumberedBatch]:
        """One pass in batches of these sizes."""
        if not self.images:
            raise OptionError(NO_DATA)
        read = batches(self.images, sizes, self.accelerator)
        return progress(read, label, self.accelerator, images=max(sizes, default=0))

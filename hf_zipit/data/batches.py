"""Batches that mix the data sets of all tasks, divided among processes."""

from collections.abc import Iterable, Sequence
from functools import cache

from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_zipit.data.images import NO_DATA, Images
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


NumberedBatch = tuple[Tensor, Tensor, Tensor]


def batches(data_sets: Sequence[Images], batch_size: int, accelerator: Accelerator) -> Iterable[NumberedBatch]:
    """This process's share of the batches that mix all data sets.

    The batches do not depend on the number of processes, and no image is repeated to make their number even.

    Returns:
        `(pixels (B, 3, H, W), number of the data set (B,), number of the image in it (B,))`.
    """
    loader = DataLoader(_Mixed(data_sets), batch_size=batch_size)
    prepared: Iterable[NumberedBatch] = accelerator.prepare_data_loader(loader, device_placement=False)
    return prepared


def remembered(images: Images, limit: int = 2**30) -> Images:
    """The same images, each decoded once and then kept in memory, if all of them fit into `limit` bytes."""
    first = images[0]
    if first.nbytes * len(images) > limit:
        return images
    get = cache(images.get)
    return Images(get, images.labels, images.names, images.name, images.fingerprint, images.ref)


def make_accelerator() -> Accelerator:
    """An accelerator that divides batches among processes without repeating images."""
    return Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False, dispatch_batches=False))


class Passes:
    """Passes over the images of all tasks; each process sees its share of the batches.

    Args:
        images: the data sets: one for all tasks, or one per task. Without any, no pass is possible.
        batch_size: images per batch.
        device: where the models run; `None` takes the accelerator's device.

    Raises:
        OptionError: `batch_size` is below 1, or the device does not exist.

    >>> passes = Passes(images, batch_size=32)  # doctest: +SKIP
    >>> for pixels, task in passes("Reading activations"): ...  # doctest: +SKIP
    """

    def __init__(self, images: Sequence[Images], batch_size: int = 32, device: str | None = None) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}: it must be at least 1")
        self.images = images
        self.batch_size = batch_size
        self.accelerator = make_accelerator()
        self.device = device_of(device, self.accelerator.device)

    def __call__(self, label: str) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass: `(pixels (B, 3, H, W), number of the data set (B,))`, both on the CPU.

        Raises:
            OptionError: there are no images.
        """
        return ((pixels, task) for pixels, task, _ in self.numbered(label))

    def numbered(self, label: str) -> Iterable[NumberedBatch]:
        """One pass with the number of every image in its data set; see `batches`.

        Raises:
            OptionError: there are no images.
        """
        if not self.images:
            raise OptionError(NO_DATA)
        return progress(batches(self.images, self.batch_size, self.accelerator), label, self.accelerator)

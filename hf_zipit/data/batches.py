"""Batches that mix the data sets of all tasks, shared out among processes."""

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
    """Several data sets as one, interleaved in proportion to their lengths: `(pixels, data set, number in it)`."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        places = [((i + 0.5) / len(p), k, i) for k, p in enumerate(parts) for i in range(len(p))]
        self.order = [(k, i) for _, k, i in sorted(places)]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        part, i = self.order[index]
        return self.parts[part][i], part, i


Numbered = tuple[Tensor, Tensor, Tensor]


def batches(parts: Sequence[Images], batch_size: int, accelerator: Accelerator) -> Iterable[Numbered]:
    """This process's share of the mixed batches: `(pixels (B, 3, H, W), data set (B,), number in it (B,))`.

    The batches do not depend on the number of processes; no image is repeated to even them out.
    """
    loader = DataLoader(_Mixed(parts), batch_size=batch_size)
    prepared: Iterable[Numbered] = accelerator.prepare_data_loader(loader, device_placement=False)
    return prepared


def remembered(images: Images, limit: int = 2**30) -> Images:
    """The same images, each decoded once and then kept in memory, where all of them fit in `limit` bytes."""
    first = images[0]
    if first.nbytes * len(images) > limit:
        return images
    get = cache(images.get)
    return Images(get, images.labels, images.names, images.name, images.fingerprint)


def make_accelerator() -> Accelerator:
    """An accelerator that shares out batches without repeating images."""
    return Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False, dispatch_batches=False))


class Passes:
    """Passes over the images of all tasks, on this process's device and share of the batches.

    >>> passes = Passes(images, batch_size=32)  # doctest: +SKIP
    >>> for pixels, task in passes("Reading activations"): ...  # doctest: +SKIP
    """

    def __init__(self, images: Sequence[Images], batch_size: int = 32, device: str | None = None) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}: it must be at least 1")
        self.images, self.batch_size = images, batch_size
        self.accelerator = make_accelerator()
        self.device = device_of(device, self.accelerator.device)

    def __call__(self, label: str) -> Iterable[tuple[Tensor, Tensor]]:
        """One pass: `(pixels (B, 3, H, W), data set (B,))`, both on the CPU.

        Raises:
            OptionError: there are no images.
        """
        return ((pixels, part) for pixels, part, _ in self.numbered(label))

    def numbered(self, label: str) -> Iterable[Numbered]:
        """One pass with every image's number in its data set, the same for any number of processes: `(B,)`."""
        if not self.images:
            raise OptionError(NO_DATA)
        return progress(batches(self.images, self.batch_size, self.accelerator), label, self.accelerator)

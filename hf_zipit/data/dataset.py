"""A data set of preprocessed images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from hf_zipit.data.labels import Labels


@dataclass(eq=False)
class Images(Dataset[Tensor]):
    """Preprocessed images of one data set: `images[i]` is a `(channels, H, W)` tensor.

    Attributes:
        get: makes image i.
        count: the number of images.
        name: what the data set is called in reports.
        fingerprint: a function that returns a hash of the content of the images.
        labels: the columns that may hold their labels.
        ref: the Hub id or path that opens the data set again, if it has one.
        asked: the number of images that were chosen, with those that cannot be read and are skipped.
        held: images of the same data set that are held out; `None` if there are none.
    """

    get: Callable[[int], Tensor]
    count: int
    name: str
    fingerprint: Callable[[], str]
    labels: tuple[Labels, ...] = ()
    ref: str | None = None
    asked: int | None = None
    held: "Images | None" = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.get(index)

    @property
    def labelled(self) -> bool:
        """Whether some images have a label."""
        return any(column.count() for column in self.labels)

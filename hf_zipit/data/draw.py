"""Which images of a data set a merge reads, and which it holds out."""

import random
from dataclasses import dataclass
from itertools import pairwise

from hf_zipit.errors import DataError, OptionError

USEFUL = 1000  # images per data set; more change little, see docs/automatic.md
HELD_OUT = 500  # most images of a data set that are held out
SHARE = 5  # where a data set has no more images than are read, one in so many is held out
FEWEST = 100  # a smaller data set has none to spare


def shares(length: int, num_images: int, held_out: bool) -> tuple[int, int]:
    """How many images of a data set are read, and how many are held out.

    Images that are not read are held out first. Where these are few, some of the others are held out instead.

    Args:
        length: images in the data set.
        num_images: how many are to be read, at most `length`.
        held_out: whether any are to be held out.

    >>> shares(50_000, 1000, held_out=True), shares(200, 200, held_out=True)
    ((1000, 500), (160, 40))
    """
    held = min(HELD_OUT, max(length - num_images, length // SHARE)) if held_out and length >= FEWEST else 0
    return min(num_images, length - held), held


def spread(length: int, count: int, generator: random.Random) -> list[int]:
    """The numbers of `count` images, ascending: one at random from each of as many equal stretches of the data set.

    A data set in the order of its classes so gives images of all classes, in proportion.

    >>> spread(4, 4, random.Random(0))
    [0, 1, 2, 3]
    """
    starts = [number * length // count for number in range(count + 1)] if count else [0]
    return [generator.randrange(start, stop) for start, stop in pairwise(starts)]


@dataclass(frozen=True)
class Sample:
    """How many images of a data set are read, and whether others are held out.

    >>> Sample(2).rows(2, "two images")
    ([0, 1], [])

    Attributes:
        count: so many; `None` for all.
        most: with `count` `None`, at most so many.
        held_out: whether some are held out.
        seed: decides which.
    """

    count: int | None = None
    most: int | None = None
    held_out: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise OptionError(f"num_images is {self.count}: it must be at least 1")

    @property
    def limit(self) -> int | None:
        """How many images have to be looked at; `None` for all."""
        wanted = self.count or self.most
        return None if wanted is None else wanted + HELD_OUT * self.held_out

    def rows(self, length: int, name: str) -> tuple[list[int], list[int]]:
        """The numbers of the images that are read, and of those that are held out, both ascending.

        Args:
            length: images in the data set.
            name: of the data set, for messages.

        Raises:
            DataError: there are none.
            OptionError: there are fewer than `count`.
        """
        if not length:
            raise DataError(f"{name}: there are no images")
        if self.count is not None and self.count > length:
            raise OptionError(f"{name}: there are {length} images, and num_images is {self.count}; lower it")
        wanted = self.count or min(length, self.most or length)
        return _drawn(length, *shares(length, wanted, self.held_out), self.seed)


def _drawn(length: int, count: int, held: int, seed: int) -> tuple[list[int], list[int]]:
    """`count` numbers below `length`, and `held` others."""
    generator = random.Random(seed)
    both = spread(length, count + held, generator)
    out = set(spread(len(both), held, generator))
    return [n for i, n in enumerate(both) if i not in out], [n for i, n in enumerate(both) if i in out]

"""Which images choose among the fits of a refit, and which are read where not all can be: both are drawn at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

HELD_OUT = 10  # one image in so many is held out


class Draw:
    """A random order of the images of every data set.

    The order is cut into blocks of ten, and the first image of each block is held out. So is a lone image. What is
    drawn depends on the seed and the lengths of the data sets: neither on the order of their classes, nor on how the
    images are divided into batches or processes.

    Args:
        lengths: the number of images in each data set.
        seed: of the draw.

    >>> int(Draw([25], seed=0).held(torch.zeros(25, dtype=torch.long), torch.arange(25)).sum())
    3
    """

    def __init__(self, lengths: Sequence[int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.starts = torch.tensor([0, *lengths]).cumsum(0)
        self.places = torch.cat([torch.randperm(length, generator=generator) for length in lengths])

    def held(self, task: Tensor, number: Tensor) -> Tensor:
        """Whether images are held out, `(B,)`.

        Args:
            task: the data set of every image, `(B,)`.
            number: the number of every image in its data set, `(B,)`.
        """
        return self._places(task, number) % HELD_OUT == 0

    def read(self, task: Tensor, number: Tensor, every: int) -> Tensor:
        """Whether images are among those of one block in `every`, `(B,)`; arguments as for `held`."""
        return self._places(task, number) // HELD_OUT % every == 0

    def _places(self, task: Tensor, number: Tensor) -> Tensor:
        """The place of images in the order of their data set, `(B,)`."""
        return self.places.to(task.device)[self.starts.to(task.device)[task] + number]

"""Plain weight averaging, as a match."""

from collections.abc import Sequence

import torch

from hf_zipit.errors import OptionError
from hf_zipit.transform.match import Match


def average_match(sizes: Sequence[int], groups: int = 1) -> Match:
    """Match unit i of every model with unit i of every other: plain weight averaging, in O(n).

    Args:
        sizes: Units of each model, all equal.
        groups: Ignored; methods that need no similarity have one signature.

    Raises:
        OptionError: The models have different widths.

    >>> average_match([2, 2]).labels
    tensor([0, 1, 0, 1])
    """
    width = common_width(sizes, "average")
    return Match(torch.arange(width).repeat(len(sizes)), tuple(sizes), width)


def common_width(sizes: Sequence[int], method: str) -> int:
    """The width that all models share.

    Args:
        sizes: Units of each model.
        method: Name of the method that needs equal widths, for the error message.

    Raises:
        OptionError: The models have different widths.

    >>> common_width([3, 3], "permute")
    3
    """
    if len(set(sizes)) != 1:
        raise OptionError(
            f"{method} needs models of one width, not {list(sizes)}; zip, select, kmeans and permute take any widths"
        )
    return sizes[0]

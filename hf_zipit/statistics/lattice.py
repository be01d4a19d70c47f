"""Which positions of a large feature map are read."""

from collections.abc import Sequence


def lattice(size: Sequence[int], positions: int) -> tuple[slice, slice]:
    """Rows and columns of an even lattice in a feature map.

    Args:
        size: height and width of the map.
        positions: upper limit on the positions of the lattice. A map with no more is read in full.

    >>> lattice((16, 16), 256), lattice((56, 56), 256)
    ((slice(0, None, 1), slice(0, None, 1)), (slice(1, None, 4), slice(1, None, 4)))
    """
    height, width = size
    stride = 1
    while -(-height // stride) * -(-width // stride) > positions:
        stride += 1
    even = slice((stride - 1) // 2, None, stride)
    return even, even

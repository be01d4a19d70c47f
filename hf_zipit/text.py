"""Text for the terminal: aligned tables, numbers with SI prefixes, the first line of an error."""

from collections.abc import Sequence


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty.

    >>> first_line(ValueError("no such file\\nsee the manual")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first to the left, the others to the right.

    >>> print(table(["a", "n"], [["x", "1"], ["yy", "10"]]))
    a    n
    x    1
    yy  10
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        first, *numbers = zip(line, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in numbers)])

    return "\n".join(aligned(line) for line in lines)


_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(number: float, unit: str = "") -> str:
    """A number with four significant digits, an SI prefix and the unit.

    >>> si(81_600_000, "FLOPs"), si(77390), si(12)
    ('81.6 MFLOPs', '77.39 k', '12')
    """
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if number >= size), (1.0, ""))
    return f"{number / size:.4g} {prefix}{unit}".rstrip()

"""Tables for the terminal, Markdown and LaTeX; numbers with SI prefixes, sizes, what a library raises as one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hf_zipit.errors import SourceError


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty.

    >>> first_line(ValueError("no such file\\nsee the manual")), first_line(KeyError())
    ('no such file', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def load_errors(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a library raises into one line.

    Args:
        what: the start of the message: the model, and what failed.
        kinds: the error types to turn into a `SourceError`; others, and a `SourceError`, pass unchanged.

    Raises:
        SourceError: with the first line of the original error.
    """
    try:
        yield
    except SourceError:
        raise
    except kinds as error:
        raise SourceError(f"{what}: {first_line(error)}") from error


def size_text(size: Sequence[int]) -> str:
    """A size for a message.

    >>> size_text((3, 224, 224))
    '3 x 224 x 224'
    """
    return " x ".join(map(str, size))


def some(items: Sequence[object], most: int = 4) -> str:
    """The first of some names, and how many follow.

    >>> some("abcdef")
    'a, b, c, d and 2 more'
    """
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def percent(value: float | None) -> str:
    """A share in percent; a dash if it is unknown.

    >>> percent(0.5), percent(None)
    ('50.0', '-')
    """
    return "-" if value is None else f"{100 * value:.1f}"


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


def markdown_cell(text: str) -> str:
    """A text as Markdown shows it in a table or heading: bars would divide cells, and comments would hide text.

    >>> markdown_cell("a|b")
    'a\\\\|b'
    """
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as GitHub shows it: the first column to the left, the others to the right.

    >>> print(markdown_table(["a", "n"], [["x_1", "1"]]))
    | a | n |
    |---|---:|
    | x\\_1 | 1 |
    """
    lines = [[markdown_cell(cell).replace("_", "\\_").replace("*", "\\*") for cell in line] for line in (header, *rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], "|---" + "|---:" * (len(header) - 1) + "|", *shown[1:]])


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A LaTeX table with the rules of the package booktabs; special characters are escaped.

    >>> print(latex_table(["a", "%"], [["x_1", "1"]]))
    \\begin{tabular}{lr}
    \\toprule
    a & \\% \\\\
    \\midrule
    x\\_1 & 1 \\\\
    \\bottomrule
    \\end{tabular}
    """
    head, *body = [rf"{' & '.join(map(latex, line))} \\" for line in (header, *rows)]
    columns = "l" + "r" * (len(header) - 1)
    begin = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}"])


def latex(text: str) -> str:
    """A text for LaTeX on one line, with its special characters escaped.

    >>> latex("a_b & 5 % of #1")
    'a\\\\_b \\\\& 5 \\\\% of \\\\#1'
    """
    return " ".join(text.split()).translate(_LATEX)


_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "_%&#${}"},
        **{letter: f"${letter}$" for letter in "<>|"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
)
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(number: float, unit: str = "") -> str:
    """A number with four significant digits, an SI prefix and the unit.

    >>> si(81_600_000, "FLOPs"), si(77390), si(12)
    ('81.6 MFLOPs', '77.39 k', '12')
    """
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if number >= size), (1.0, ""))
    return f"{number / size:.4g} {prefix}{unit}".rstrip()

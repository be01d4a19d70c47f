"""Tables and summaries in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with `|` escaped in the cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def summary(description: str) -> str:
    """The first paragraph of a description; lists of names that follow it have separate tables."""
    return " ".join(description.partition("\n\n")[0].split())

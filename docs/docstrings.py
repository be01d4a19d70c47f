"""For mkdocstrings: what docstrings need to be pages. They are read from the source; the package is not imported."""

import re
from typing import Any

import griffe

OPTIONS = "**options: The options of a merge, by name; all are on the page [Options](../options.md)."
EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).+)*", re.MULTILINE)  # to the next empty line


class Docstrings(griffe.Extension):
    """Fills in `{options}`, which the package does when it is imported, and marks examples as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("{options}", OPTIONS)
            obj.docstring.value = EXAMPLE.sub(fenced, text)


def fenced(example: re.Match[str]) -> str:
    """An example as a block of code, without the remarks to doctest."""
    code = re.sub(r" *# doctest: \+\w+", "", example[0])
    return f"```pycon\n{code}\n```"

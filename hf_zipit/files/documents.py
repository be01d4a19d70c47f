"""YAML documents of users, read without surprises: no aliases, no key given twice, nothing that grows without bound."""

import unicodedata
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20


class PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases, which can expand to any size, and keys given twice, of which one is lost."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, unless it is an alias."""
        if self.check_event(yaml.AliasEvent):
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"the alias '*{event.anchor}' is not supported: write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping whose keys all differ."""
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if key.value.__hash__ is not None and key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
            if key.value.__hash__ is not None:
                seen.add(key.value)
        return node


def read_text(file: Path) -> str:
    """The text of a small file.

    Raises:
        ValueError: it cannot be read, is not in UTF-8, or is too large; the message is one line.
    """
    try:
        if not file.is_file():
            raise ValueError("it is not a file" if file.exists() else "there is no such file")
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {file.stat().st_size} bytes, and at most {MAX_BYTES} are read")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None


def load(text: str) -> Any:
    """The plain values in a YAML text; `None` if it is empty.

    Raises:
        ValueError: it is not YAML, or uses aliases, keys given twice, or values that YAML cannot express; the message
            is one line.
    """
    try:
        return yaml.load(text, PlainLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, AttributeError, TypeError, KeyError) as error:  # dates and numbers fail so
        said = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ValueError(said or type(error).__name__) from None


def is_plain(text: str) -> bool:
    """Whether a text is one line without control characters, and can be written as UTF-8."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)

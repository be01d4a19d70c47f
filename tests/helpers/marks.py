"""Parameters of tests that are slow, and left out of the everyday suite."""

from collections.abc import Collection, Iterable

import pytest


def slow(*values: object) -> object:
    """One parameter set of a test, marked as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(quick: Collection[object], values: Iterable[object]) -> list[object]:
    """The values, all of them marked as slow except the quick ones."""
    return [value if value in quick else slow(value) for value in values]

"""Numbers as people read them."""

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def si(number: float, unit: str = "") -> str:
    """Four digits, an SI prefix and the unit.

    >>> si(81_600_000, "FLOPs"), si(77390), si(12)
    ('81.6 MFLOPs', '77.39 k', '12')
    """
    size, prefix = next(((size, prefix) for size, prefix in _PREFIXES if number >= size), (1.0, ""))
    return f"{number / size:.4g} {prefix}{unit}".rstrip()

"""Odd values, and odd changes of the trees of values that configs and recipes are."""

import copy
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 10**5, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1.0, 1e-30, 1e30, 1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
WORDS = (
    *("", " ", "0", "3", "1e3", "nan", "none", "None", "true", "a", "ünïcödé 🐈", "a/b", "../a", "a\nb", "[a]", "*"),
    *("%s{0}", "a" * 3000),
)
NESTED = ([], {}, [None], [[]], {"a": 1}, {"0": None}, [1, 2, 3], ["a", "b"], [[1, 2], [3]])
ODD = (None, True, False, *NUMBERS, *NOT_FINITE, *WORDS, *NESTED)
EXTRA = (
    *(
        "foo",
        "",
        "0",
        "num_classes",
        "dtype",
        "quantization_config",
        "auto_map",
        "label_names",
        "__class__",
        "in_chans",
    ),
)
Path = tuple[Any, ...]


def odd(rng: Random, like: Any = None) -> Any:
    """An odd value; often one that resembles a right one."""
    near = _near(rng, like)
    return copy.deepcopy(rng.choice(near) if near and rng.random() < 0.5 else rng.choice(ODD))


def _near(rng: Random, like: Any) -> list[Any]:
    """Values that resemble a right one: of another type, another sign, another length."""
    if isinstance(like, bool):
        return [not like, int(like), str(like), None]
    if isinstance(like, int | float):
        other: list[Any] = [like + 1, like - 1, -like, like * 2, like * 1000]
        return [*other, float(like), str(like), [like], [like, like], {"0": like}]
    if isinstance(like, str):
        return [like + "x", like[:-1], like.upper(), [like], {like: like}, like + "\n", like * 50]
    if isinstance(like, list) and like:
        other = [like[:-1], like + like, [*like[1:], like[0]], [None, *like[1:]], [odd(rng, like[0]), *like[1:]]]
        return [*other, like[0], [like], {str(i): value for i, value in enumerate(like)}]
    if isinstance(like, dict) and like:
        turned = {value: key for key, value in like.items() if isinstance(value, str | int)}
        return [list(like), list(like.values()), dict(list(like.items())[:-1]), turned]
    return []


def paths(tree: Any, above: Path = ()) -> list[Path]:
    """The paths of all values in a tree of mappings and lists, without its root."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in inner for path in ((*above, key), *paths(value, (*above, key)))]


def get(tree: Any, path: Path) -> Any:
    """The value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def changed(rng: Random, tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A tree with one to three odd changes, and what they are."""
    tree, told = copy.deepcopy(tree), []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        told.append(_change(rng, tree))
    return tree, "; ".join(told)


def _change(rng: Random, tree: dict[str, Any]) -> str:
    """Change a tree in place, and say how."""
    every = paths(tree)
    if not every or rng.random() < 0.05:
        key, value = rng.choice(EXTRA), odd(rng)
        tree[key] = value
        return f"{key} added: {shown(value)}"
    path = rng.choice(every)
    holder, key = get(tree, path[:-1]), path[-1]
    where = ".".join(map(str, path))
    how = rng.random()
    if how < 0.15:
        del holder[key]
        return f"{where} removed"
    if how < 0.2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
        return f"{where} renamed"
    if how < 0.25:
        other = rng.choice(every)
        try:
            holder[key] = copy.deepcopy(get(tree, other))
        except (KeyError, IndexError, TypeError):
            holder[key] = None
        return f"{where} as {'.'.join(map(str, other))}"
    value = odd(rng, holder[key])
    told = f"{where}: {shown(holder[key])} -> {shown(value)}"
    holder[key] = value
    return told


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:60]}... ({len(text)} characters)"


def broken(rng: Random, data: bytes) -> tuple[bytes, str]:
    """The bytes of a file with a fault that no writer makes, and what it is."""
    cut = rng.randrange(len(data) + 1)
    flipped = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 8)))] if data else []
    for place in places:
        flipped[place] ^= 1 << rng.randrange(8)
    return rng.choice(
        [
            (b"", "empty"),
            (data[:cut], f"cut after {cut} of {len(data)} bytes"),
            (data[cut:], f"without its first {cut} bytes"),
            (bytes(flipped), f"bits flipped at {places}"),
            (b"\xef\xbb\xbf" + data, "after a byte order mark"),
            (data + b"\0" * 9, "nine zero bytes longer"),
            (data + data, "twice"),
            (b"\xff\xfe" + data, "not UTF-8"),
            (b"[" * 100_000, "100 000 brackets"),
            (b"null", "null"),
            (b"[1, 2]", "a list"),
            (b'"text"', "a text"),
            (b"NaN", "NaN"),
            (b"<html>Not found</html>", "a page of a proxy"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "a pointer of git LFS"),
        ]
    )

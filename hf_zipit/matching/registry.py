"""All methods by name: those of the package, those registered from outside it, and those that plug-ins offer.

A plug-in is an installed package with entry points of the group `hf_zipit.methods`. Names come from its metadata; its
code is loaded when one of its methods is used.
"""

import difflib
import functools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, TypeVar

from hf_zipit.errors import OptionError
from hf_zipit.matching.method import Method
from hf_zipit.matching.methods import METHODS
from hf_zipit.text import first_line

GROUP = "hf_zipit.methods"  # of entry points
AUTO = "auto"
ALL = "all"  # every method, in a comparison
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
OURS = frozenset(METHODS)
ATTRIBUTES = (  # of `Method`, for functions from outside
    *("activations", "weights", "fixed", "within", "sized", "read", "heads", "unequal"),
    *("covariance", "dense", "options", "settings", "seconds", "control"),
)
CHOSEN_LATER = replace(  # what may be said of a method that is yet to be chosen; see `merging.automatic`
    METHODS["select"],
    summary="the method that suits these models and images: select, or what is nearer to the models if they have one "
    "base",
)
ABSENT = Method(  # what allows every option
    "",
    "a method that is not installed here",
    activations=True,
    weights=True,
    within=True,
    sized=True,
    unequal=True,
)
Function = TypeVar("Function", bound=Callable[..., Any])
_may_be_absent = ContextVar("_may_be_absent", default=False)
_log = logging.getLogger("hf_zipit")


def register_method(name: str, summary: str, **how: Any) -> Callable[[Function], Function]:
    """Register a matching method from outside the package: options, help, `compare` and recipes then have it.

    Used as a decorator of the matching function. Its signature is `(similarity (n, n), sizes) -> Match`, or
    `(sizes, groups) -> Match` if `fixed`; with `sized` it takes the number of merged units as the keyword `keep`. The
    units of model 0 come first. A later function of the same name replaces the earlier one.

    For the methods of an installed package, let it have an entry point of the group `hf_zipit.methods`: its name is the
    method's name, and its value is where the function is defined, `module:function`.

    Args:
        name: Lower-case words with hyphens, which no method of hf-zipit has.
        summary: What the method does, in one line for help texts.
        how: What the function reads and takes, as attributes of `hf_zipit.matching.Method`. Give `activations=True` or
            `weights=True` for the similarity that it reads, or `fixed=True` if it needs none.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        OptionError: The name is malformed or taken, or an attribute is unknown or missing.

    >>> @register_method("rank", "pair units whose similarities are ordered alike", activations=True)  # doctest: +SKIP
    ... def rank_match(similarity, sizes): ...
    """
    if not NAME.fullmatch(name):
        raise OptionError(f"'{name}' cannot name a method: give lower-case words with hyphens, such as rank-match")
    if name in (*OURS, AUTO, ALL):
        raise OptionError(f"'{name}' is a name of hf-zipit: choose another one for your method")
    unknown = [key for key in how if key not in ATTRIBUTES]
    if unknown:
        raise OptionError(f"method '{name}': unknown attribute '{unknown[0]}'; attributes: {', '.join(ATTRIBUTES)}")
    if not any(how.get(key) for key in ("activations", "weights", "fixed")):
        raise OptionError(f"method '{name}': say what it compares: activations=True, weights=True, or fixed=True")
    if how.get("dense") and (not how.get("activations") or how.get("weights") or how.get("fixed")):
        raise OptionError(f"method '{name}': dense matches are made from activations alone: give activations=True")

    def register(function: Function) -> Function:
        METHODS[name] = Method(_checked(name, function, how), summary.rstrip("."), **how)
        return function

    return register


def method_of(name: str) -> Method:
    """The entry of a method, or what may be said of one that is yet to be chosen.

    Raises:
        OptionError: There is no such method, or the plug-in that offers it cannot be loaded.
    """
    if name == AUTO:
        return CHOSEN_LATER
    if name in METHODS:
        return METHODS[name]
    if name in _offered():
        return _loaded(name)
    if _may_be_absent.get():
        return ABSENT
    known = [AUTO, *names()]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"methods: {', '.join(known)}"
    raise OptionError(f"unknown method '{name}'; {hint}")


def names() -> list[str]:
    """Names of all methods; those that plug-ins offer are not loaded."""
    return list(dict.fromkeys([*METHODS, *_offered()]))


def usable() -> list[str]:
    """Names of all methods that can be loaded; a plug-in that cannot is named in a warning."""
    found = []
    for name in names():
        try:
            method_of(name)
        except OptionError as error:
            _log.warning("%s: it is left out", error)
        else:
            found.append(name)
    return found


def balanced(method: str) -> bool:
    """Whether a method weighs the similarity of weights against that of activations."""
    return method_of(method).weights and method_of(method).activations


def described() -> str:
    """All methods with their summaries for a help text, one paragraph each; of plug-ins, the package.

    >>> "- random (control): match units one-to-one at random." in described().splitlines()
    True
    """
    entries = {AUTO: CHOSEN_LATER, **METHODS}
    texts = {f"{name} (control)" if method.control else name: method.summary for name, method in entries.items()}
    texts |= {name: f"from the package {package}" for name, (_, package) in _offered().items() if name not in METHODS}
    return "\n\n".join(f"- {name}: {text}." for name, text in texts.items())


@contextmanager
def absent_methods() -> Iterator[None]:
    """Within this block, options may name methods that are not installed: those of a merge that somebody else made."""
    token = _may_be_absent.set(True)
    try:
        yield
    finally:
        _may_be_absent.reset(token)


@functools.cache
def _offered() -> dict[str, tuple[EntryPoint, str]]:
    """The methods that installed packages offer, with the names of the packages. No code of theirs is loaded."""
    found: dict[str, tuple[EntryPoint, str]] = {}
    for distribution in distributions():
        for point in _points(distribution):
            package = distribution.name
            if not NAME.fullmatch(point.name) or point.name in (*OURS, AUTO, ALL):
                said = "the package %s offers a method named '%s', a malformed name or one of hf-zipit: it is left out"
                _log.warning(said, package, point.name)
            elif found.setdefault(point.name, (point, package))[1] != package:
                said = "the packages %s and %s both offer the method '%s': that of the first is used"
                _log.warning(said, found[point.name][1], package, point.name)
    return found


def _points(distribution: Distribution) -> Sequence[EntryPoint]:
    """The entry points of a package in our group; none, with a warning, if its metadata is damaged."""
    try:
        if GROUP not in (distribution.read_text("entry_points.txt") or ""):
            return []
        return list(distribution.entry_points.select(group=GROUP))
    except Exception as error:  # whatever the metadata of other packages may hold
        _log.warning("the methods of %s cannot be read: %s", _package(distribution), first_line(error))
        return []


def _package(distribution: Distribution) -> str:
    """The name of a package, or where its metadata is."""
    try:
        return distribution.name
    except Exception:
        return str(getattr(distribution, "_path", "a package"))


def _loaded(name: str) -> Method:
    """A method that a plug-in offers, after loading its code."""
    point, package = _offered()[name]
    failed = f"the method '{name}' of the package {package} cannot be loaded"
    try:
        point.load()
    except (Exception, SystemExit) as error:  # a plug-in may raise anything
        raise OptionError(f"{failed}: {type(error).__name__}: {first_line(error)}") from error
    if name not in METHODS:
        raise OptionError(f"{failed}: {point.value} does not register it")
    return METHODS[name]


def _checked(name: str, function: Callable[..., Any], how: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of a method from outside, with its matches checked."""

    @functools.wraps(function)
    def match(*given: Any, **keywords: Any) -> Any:
        from hf_zipit.transform.dense import check_dense_match
        from hf_zipit.transform.match import check_match

        found = function(*given, **keywords)
        sizes = given[0] if how.get("fixed") else given[1]
        dense = how.get("dense", False)
        groups = given[1] if how.get("fixed") else 1
        fault = check_dense_match(found, sizes) if dense else check_match(found, sizes, keywords.get("keep"), groups)
        if fault:
            raise OptionError(f"method '{name}' returned {fault}")
        return found

    return match

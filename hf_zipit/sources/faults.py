"""Errors of the Hub and of model libraries as one sentence with a way out. No message ever shows an access token."""

import errno
import os
import re

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from hf_zipit.text import first_line

_FROM_THE_CACHE = (LocalEntryNotFoundError, RevisionResolutionError)
FAULTS = (HfHubHTTPError, *_FROM_THE_CACHE, HFValidationError, httpx2.HTTPError, OSError, RuntimeError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOKEN = re.compile(r"hf_\w{8,}|hf_jwt_[\w.-]+|(?<=Bearer )[\w.-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass a token (--token)"


def redact(text: str, token: str | None = None) -> str:
    """Replace access tokens in a text: whatever looks like one, the given one, and the one in use.

    >>> redact("Bearer hf_abcdefghijkl is refused")
    'Bearer *** is refused'
    """
    for secret in (token, os.environ.get("HF_TOKEN")):
        if secret and len(secret.strip()) >= 8:
            text = text.replace(secret, "***").replace(secret.strip(), "***")
    return _TOKEN.sub("***", text)


def explain(error: BaseException, name: str, revision: str | None = None, token: str | None = None) -> str:
    """Why the repository `name` could not be read or written, and what to do about it.

    Args:
        error: what the client raised, one of `FAULTS`.
        name: `user/name`.
        revision: the branch, tag or commit that was asked for.
        token: the access token in use, which is kept out of the text.
    """
    cause = _root(error)
    uncached = f"{_at(name, revision)} is neither a folder nor fully cached"
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{uncached}, and HF_HUB_OFFLINE is set; unset it to download"
    if isinstance(cause, HFValidationError):
        return redact(f"'{name}' is not a valid repository id: {first_line(cause)}", token)
    if isinstance(cause, HfHubHTTPError):
        return redact(_answered(cause, name, revision, token), token)
    if isinstance(cause, httpx2.HTTPError):
        return redact(
            f"{name}: the connection to {constants.ENDPOINT} failed ({type(cause).__name__}: {first_line(cause)}); "
            "try again, complete files are not transferred again",
            token,
        )
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return (
            f"{name}: the disk or quota holding the cache is full ({cause.strerror}: {constants.HF_HUB_CACHE}); "
            "free some space, or set HF_HOME to another disk"
        )
    if isinstance(cause, _FROM_THE_CACHE):
        return f"{uncached}, and the Hub cannot be reached"
    return redact(f"{name}: {first_line(cause)}", token)


def _answered(error: HfHubHTTPError, name: str, revision: str | None, token: str | None) -> str:
    """What an error response of the Hub means; special errors are tested first."""
    status = error.response.status_code
    known = bool(token or get_token())
    if isinstance(error, GatedRepoError):
        step = "your account has no access yet" if known else LOG_IN
        return f"{name} is gated; accept its conditions at {constants.ENDPOINT}/{name}, then try again ({step})"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision '{revision}'; pass a branch, a tag or a commit"
    if isinstance(error, DisabledRepoError):
        return f"{name} was disabled by the Hub"
    if isinstance(error, RepositoryNotFoundError):
        absent = f"{name} is not a folder and does not exist on the Hub, or is private"
        return f"{absent} and your access token cannot read it" if known else f"{absent}; if it is yours, {LOG_IN}"
    said = error.server_message or error.response.reason_phrase
    if status == 401:
        return f"{name}: the Hub does not accept the access token ({said}); {LOG_IN}"
    if status == 403:
        return f"{name}: your access token does not allow this ({said}); use one that does, or another name"
    if status == 409:
        return f"{name}: the repository was changed by someone else in the meantime ({said}); try again"
    if status == 429:
        return f"{name}: too many requests ({said}); try again later"
    if status >= 500:
        return f"{name}: the Hub has a server error ({status}: {said}); try again later"
    return f"{name}: the Hub answered with error {status} ({said})"


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps errors that it met while it read the cache or sent a large file."""
    while isinstance(error, (*_FROM_THE_CACHE, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name

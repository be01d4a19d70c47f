"""What went wrong with the Hub, in one sentence that says what to do. No message ever holds an access token."""

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

_FROM_THE_CACHE = (LocalEntryNotFoundError, RevisionResolutionError)
FAULTS = (HfHubHTTPError, *_FROM_THE_CACHE, HFValidationError, httpx2.HTTPError, OSError, RuntimeError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOKEN = re.compile(r"hf_\w{8,}|hf_jwt_[\w.-]+|(?<=Bearer )[\w.-]{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
LOG_IN = "log in with `hf auth login`, set HF_TOKEN, or pass --token"


def redact(text: str, token: str | None = None) -> str:
    """The text without access tokens: those that look like one, the given one, and the one in use.

    >>> redact("Bearer hf_abcdefghijkl is refused")
    'Bearer *** is refused'
    """
    for secret in (token, os.environ.get("HF_TOKEN")):
        if secret and len(secret.strip()) >= 8:
            text = text.replace(secret, "***").replace(secret.strip(), "***")
    return _TOKEN.sub("***", text)


def explain(error: BaseException, name: str, revision: str | None = None, token: str | None = None) -> str:
    """Why reading or writing the repository `name` failed, and what to do about it."""
    cause = _root(error)
    if isinstance(cause, OfflineModeIsEnabled):
        return f"{_at(name, revision)} is no folder, nor wholly in the cache, and HF_HUB_OFFLINE is set: unset it once"
    if isinstance(cause, HFValidationError):
        return redact(f"'{name}' is no name of a repository on the Hub: {_first(cause)}", token)
    if isinstance(cause, HfHubHTTPError):
        return redact(_answered(cause, name, revision, token), token)
    if isinstance(cause, httpx2.HTTPError):
        return redact(
            f"{name}: the connection to {constants.ENDPOINT} failed ({type(cause).__name__}: {_first(cause)}): try "
            "again, what is complete is not transferred a second time",
            token,
        )
    if isinstance(cause, OSError) and cause.errno in _FULL:
        return (
            f"{name}: the disk with the cache is full, or what may be written there ({cause.strerror}: "
            f"{constants.HF_HUB_CACHE}): make room, or set HF_HOME"
        )
    if isinstance(cause, _FROM_THE_CACHE):
        return f"{_at(name, revision)} is no folder, nor wholly in the cache, and the Hub cannot be reached"
    return redact(f"{name}: {_first(cause)}", token)


def _answered(error: HfHubHTTPError, name: str, revision: str | None, token: str | None) -> str:
    """The Hub's answer, by kind; the more special kinds come first."""
    status, known = error.response.status_code, bool(token or get_token())
    if isinstance(error, GatedRepoError):
        step = "your account has no access yet" if known else LOG_IN
        return f"{name} is gated: accept its conditions at {constants.ENDPOINT}/{name}, then try again ({step})"
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision '{revision}': name a branch, a tag or a commit"
    if isinstance(error, DisabledRepoError):
        return f"{name} was disabled by the Hub"
    if isinstance(error, RepositoryNotFoundError):
        if known:
            return f"{name} is no folder and does not exist on the Hub, or is private and not for your access token"
        return f"{name} is no folder and does not exist on the Hub, or is private: if it is yours, {LOG_IN}"
    said = error.server_message or error.response.reason_phrase
    if status == 401:
        return f"{name}: the Hub does not accept the access token ({said}): {LOG_IN}"
    if status == 403:
        return f"{name}: your access token does not allow this ({said}): use one with the right to it, or another name"
    if status == 409:
        return f"{name}: the repository was changed by someone else meanwhile ({said}): try again"
    if status == 429:
        return f"{name}: the Hub asks to wait, too many requests ({said}): try again later"
    if status >= 500:
        return f"{name}: the Hub has a problem of its own (error {status}: {said}): try again later"
    return f"{name}: the Hub answered with error {status} ({said})"


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps what it met while it looked into the cache, or while it sent a large file."""
    while isinstance(error, (*_FROM_THE_CACHE, RuntimeError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _at(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name

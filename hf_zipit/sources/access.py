"""What the user allows when a model is read. It comes from the user alone: no recipe or config can set it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """Rights of one run; by default only what runs no foreign code.

    `token` is an access token of the Hub; `None` takes the one of `HF_TOKEN` or `hf auth login`.
    `trust_remote_code` lets transformers run code files that come with a model. `allow_pickle` reads weights of
    `.bin` files where there is no safetensors file, with torch's restricted unpickler (`weights_only=True`).
    """

    token: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


NOTHING = Access()

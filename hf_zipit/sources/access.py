"""What the user allows while models are read. Only the user sets it: no recipe and no config can."""

from dataclasses import dataclass

from hf_zipit.errors import OptionError


@dataclass(frozen=True)
class Access:
    """Permissions of one run; by default no code of other people runs.

    Attributes:
        token: access token of the Hub; `None` uses `HF_TOKEN` or the login of `hf auth login`.
        trust_remote_code: let transformers run code files that come with a model.
        allow_pickle: read `.bin` weights where there is no safetensors file, with torch's restricted unpickler
            (`weights_only=True`).
    """

    token: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        token = (self.token or "").strip()
        if not (token.isascii() and token.isprintable()):
            raise OptionError("the access token has characters that no token has; copy it again from the Hub")


NOTHING = Access()

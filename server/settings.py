"""What a server is told: its model's name, who may ask, and how much."""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from poss_export.errors import InputError

KEYS_VARIABLE = "POSS_EXPORT_API_KEYS"  # of the environment; apart by commas or white space


@dataclass(frozen=True)
class Limits:
    """What one request may ask for; None leaves it to the bundle's capacity."""

    body: int = 1 << 20  # bytes
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    choices: int = 8  # answers of one request
    seconds: float = 600.0  # from the request's arrival to the end of its answers

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value in vars(self).items():
            if value is not None and value <= 0:
                raise InputError(f"the limit of {name} is {value}; it must be above 0", options=(name,))


class Keys:
    """API keys, kept as hashes; without any, everybody may ask."""

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        """Keep the hashes of the keys."""
        self._hashes = [_hash(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key must be given."""
        return bool(self._hashes)

    def admit(self, key: str) -> bool:
        """Whether it is one of them; the time that takes tells nothing of any."""
        given = _hash(key)
        return sum(hmac.compare_digest(given, known) for known in self._hashes) > 0  # compares all


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: Path | None = None) -> Keys:
    """Return the keys of a file, one a line, and of the environment (`KEYS_VARIABLE`).

    Lines that are blank or begin with # hold none.

    Raises:
        InputError: the file cannot be read, or it or the variable is there and holds no key.
    """
    keys = set[str]()
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"cannot read {str(file)!r} ({error}); expected a file of API keys, one a line"
            raise InputError(message, options=("api_key_file",)) from error
        found = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
        if not found:
            message = f"{str(file)!r} holds no API key; write one a line, or leave the file out"
            raise InputError(message, options=("api_key_file",))
        keys |= found
    if (given := os.environ.get(KEYS_VARIABLE)) is not None:
        if not (found := set(re.split(r"[,\s]+", given)) - {""}):
            raise InputError(f"{KEYS_VARIABLE} holds no API key; set it to some, or unset it")
        keys |= found
    return Keys(frozenset(keys))


@dataclass(frozen=True)
class Settings:
    """What the application is made with."""

    model: str  # its name in the API
    keys: Keys = field(default_factory=Keys)
    limits: Limits = Limits()

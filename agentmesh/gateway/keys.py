"""Tokens: made at random, kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from agentmesh.errors import ConfigError
from agentmesh.gateway.options import KeyOptions

MARK = "sha256:"
"""What a digest in the settings begins with."""
MIN_LENGTH = 16
"""Characters of a token; shorter ones can be guessed."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def new_token() -> str:
    """256 random bits, in a form that can be typed."""
    return f"am_{secrets.token_urlsafe(32)}"


def digest(token: str) -> str:
    """SHA-256 in hex. Enough for tokens, which unlike passwords cannot be guessed."""
    return hashlib.sha256(token.encode()).hexdigest()


def stored(key: str, value: str) -> str:
    """The digest of a token in the settings, which have it in plain or as `sha256:<hex>`.

    Args:
        key: The setting, for the error.
        value: What it holds.

    Raises:
        ConfigError: It is no digest, or too short a token.
    """
    if value.startswith(MARK):
        found = _DIGEST.fullmatch(value)
        if found is None:
            raise ConfigError(key, f"expected {MARK} and 64 hexadecimal digits; `agentmesh keys new` prints one")
        return found[1]
    if len(value) < MIN_LENGTH:
        raise ConfigError(
            key, f"a token of {len(value)} characters can be guessed: use {MIN_LENGTH} or more (`agentmesh keys new`)"
        )
    return digest(value)


class KeyRing:
    """The keys that are let in."""

    def __init__(self, keys: tuple[KeyOptions, ...]) -> None:
        self._keys = keys

    def find(self, token: str) -> KeyOptions | None:
        """Whose token it is; None for nobody's. Takes as long for a wrong one as for any that is right."""
        given = digest(token)
        found = None
        for key in self._keys:  # all of them, whatever matches
            if hmac.compare_digest(given, key.digest):
                found = key
        return found

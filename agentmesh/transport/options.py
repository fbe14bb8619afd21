"""How to reach the broker."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urlsplit

from agentmesh.breaker import BreakerPolicy
from agentmesh.errors import ConfigError
from agentmesh.tracing import To

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")

Secret = str | Callable[[], str] | None
"""A credential, or a function that gives the current one: it is asked again at every new connection."""


@dataclass(frozen=True, repr=False)
class TransportOptions:
    """Where the broker is and who we are. Credentials inside `url` are used, and never shown."""

    url: str | Sequence[str] = "nats://127.0.0.1:4222"
    name: str = "agentmesh"
    """Shown in the broker's list of connections."""

    user: Secret = None
    password: Secret = None
    token: Secret = None
    creds: str | None = None
    """Path of a credentials file; read again at every new connection."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    """Any `tls_` file, or a `tls://` URL, means TLS before anything else is said: the broker needs
    `tls { handshake_first: true }`. Otherwise credentials could be asked for in plain text."""

    connect_timeout: float = 5.0
    """Seconds for the first connection. Later ones are tried for ever, unless the login is refused."""

    login_patience: float = 30.0
    """Seconds for which a login that was good and is refused now is tried again, with credentials asked for anew each
    time. Then the connection is closed for good, which ends a node process."""

    replicas: int | None = None
    """Copies of each stream; None: 3 when the cluster has 3 or more nodes, else 1."""

    max_payload: int | None = None
    """Bytes, when the account allows less than the server does (the broker only tells the server's limit)."""

    tracing: To = "off"
    """Where spans go, see `tracing`; `off`: nowhere, and none are made."""

    breaker: BreakerPolicy | None = None
    """When agents that do not answer are not asked for a while; None: they always are."""

    inbox_prefix: str = ""
    """Prefix of reply subjects; empty: `_INBOX_<user or name>`, so that one user cannot read another's replies."""

    def __post_init__(self) -> None:
        if isinstance(self.breaker, dict):  # it came as JSON
            object.__setattr__(self, "breaker", BreakerPolicy(**self.breaker))
        if not self.servers:
            raise ConfigError("url", "no broker URL given")
        for url in self.servers:
            parts = urlsplit(url)
            try:
                known = parts.scheme in ("nats", "tls") and parts.hostname and (parts.port is None or parts.port > 0)
            except ValueError:
                known = False
            if not known:
                raise ConfigError("url", f"{shown_url(url)!r} is not a broker URL such as nats://127.0.0.1:4222")
        if self.connect_timeout <= 0:
            raise ConfigError("connect_timeout", f"{self.connect_timeout} is not a number of seconds above 0")

    def __repr__(self) -> str:
        return f"TransportOptions({self.shown!r}, name={self.name!r})"

    @cached_property
    def servers(self) -> list[str]:
        given = [self.url] if isinstance(self.url, str) else list(self.url)
        return [url.strip() if "://" in url else f"nats://{url.strip()}" for url in given if url.strip()]

    @property
    def shown(self) -> str:
        """The URLs without credentials, for messages and logs."""
        return ", ".join(shown_url(url) for url in self.servers)

    @property
    def reply_prefix(self) -> str:
        user = self.user() if callable(self.user) else self.user
        return self.inbox_prefix or "_INBOX_" + _UNSAFE.sub(
            "-", user or urlsplit(self.servers[0]).username or self.name
        )

    def credentials(self) -> dict[str, Any]:
        """The login arguments of the client. Credentials in the URL count when none are given beside it."""
        if self.creds:
            return {"user_credentials": self.creds}
        if self.user or self.token:
            return {"user": self.user, "password": self.password, "token": self.token}
        parts = urlsplit(self.servers[0])
        if parts.username and parts.password is not None:
            return {"user": unquote(parts.username), "password": unquote(parts.password)}
        return {"token": unquote(parts.username)} if parts.username else {}

    def tls(self) -> dict[str, Any]:
        """TLS arguments of the client; handshake first, because it else falls back to plain text."""
        if not (self.tls_ca or self.tls_cert or any(url.startswith("tls://") for url in self.servers)):
            return {}
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError("tls", f"cannot read the certificates: {error}") from error
        return {"tls": context, "tls_handshake_first": True}


def shown_url(url: str) -> str:
    """`url` without user and password."""
    scheme, found, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if found else url.rpartition("@")[2]

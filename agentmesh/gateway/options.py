"""How the gateway listens, whom it lets in, and what it bounds: plain data, handed to its process by `agentmesh up`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from agentmesh.errors import ConfigError
from agentmesh.subjects import token

DEFAULT_PORT = 8000
DEFAULT_RATE = 1000.0
DEFAULT_CONCURRENCY = 256
DEFAULT_STREAMS = 100
ANONYMOUS = "anonymous"
"""The name of callers on loopback while no keys are set."""

_ORIGIN = re.compile(r"https?://[^/?#\s@*]+")
_ROUTE = re.compile(r"(GET|POST|PUT|PATCH|DELETE) /\S*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class KeyOptions:
    """Somebody who may call, known by a token of which only the digest is kept."""

    name: str
    digest: str = ""
    """SHA-256 of the token, in hex. Empty: no token is asked for, which only works on loopback."""
    tenant: str = ""
    """Whose agents it reaches; empty: those of the mesh."""
    rate: float = DEFAULT_RATE
    """Requests per second; as many may come at once. 0: no limit."""
    concurrency: int = DEFAULT_CONCURRENCY
    """Requests under way at the same time, open streams not counted. 0: no limit."""
    streams: int = DEFAULT_STREAMS
    """Streams open at the same time. 0: no limit."""


@dataclass(frozen=True)
class GatewayOptions:
    """See the module. Made by the command line from `[http]`."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: 8000, or a free one when that is taken; 0: any free one."""
    keys: tuple[KeyOptions, ...] = ()
    anonymous: KeyOptions = KeyOptions(ANONYMOUS)
    """Limits of callers without a key, who are let in only on loopback and while there are no keys."""
    hosts: tuple[str, ...] = ()
    """Names under which it is reached, besides its address; with any, all others are refused."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call it, such as `https://app.example`."""
    max_body: int = 512 * 1024
    """Bytes of a request's body."""
    header_timeout: float = 10.0
    """Seconds for the head of a request."""
    body_timeout: float = 30.0
    """Seconds for the body of a request."""
    idle_timeout: float = 60.0
    """Seconds a connection may lie idle between requests."""
    write_timeout: float = 30.0
    """Seconds a client may take nothing of what is written to it."""
    timeout: float = 30.0
    """Seconds a request may take, where its route says nothing else."""
    routes: Mapping[str, float] = field(default_factory=dict)
    """Seconds for single routes, such as `POST /ai/llm/infer`."""
    chat_agent: str = ""
    """Who answers a chat that names nobody; empty: the only agent that can, or `llm`."""
    access_log: bool = True
    """A line for each request."""
    debug: bool = False
    """What a failing handler said is told to its caller."""

    def __post_init__(self) -> None:
        if not self.loopback and not self.keys:
            raise ConfigError(
                "http.host",
                f"{self.host} can be reached from other machines, and everybody there could call your agents: make a "
                'token with `agentmesh keys new` and set http.token = "${AGENTMESH_HTTP_TOKEN}", or use 127.0.0.1',
            )
        names = [key.name for key in self.keys]
        for key in self.keys:
            if token("key", key.name) and names.count(key.name) > 1:
                raise ConfigError(f"http.keys.{key.name}", "is there twice")
            if _DIGEST.fullmatch(key.digest) is None:
                raise ConfigError(f"http.keys.{key.name}.token", "has no digest")
            if key.tenant:
                token("tenant", key.tenant)
        for origin in self.cors:
            if _ORIGIN.fullmatch(origin) is None:
                raise ConfigError("http.cors", f"{origin!r}: expected an exact origin, such as 'https://app.example'")
        for route in self.routes:
            if _ROUTE.fullmatch(route) is None:
                raise ConfigError(f'http.routes."{route}"', "expected a method and a path, such as 'POST /chat'")

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can reach it."""
        return is_loopback(self.host)

    @property
    def open(self) -> bool:
        """Whether callers without a key are let in."""
        return not self.keys


def is_loopback(host: str) -> bool:
    """Whether an address is one of this machine alone; of names only `localhost` is trusted to be."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int) -> str:
    """The URL of a gateway that listens there, as others on this machine reach it."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

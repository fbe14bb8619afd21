"""Who may come in: by the address they call, the page they come from, and their token."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

from agentmesh.codes import ErrorCode
from agentmesh.gateway.errors import refused
from agentmesh.gateway.gateway import Caller, Gateway, unauthenticated
from agentmesh.gateway.keys import KeyRing
from agentmesh.gateway.options import is_loopback

PUBLIC = frozenset({"/health", "/ready", "/openapi.json", "/docs"})
"""Paths for which no key is needed: they say nothing about what runs here."""
PAGES = "/ui"
"""The same for all below: pages, which ask for the key themselves."""

MAX_HEAD = 16 * 1024
"""Bytes of all header fields together, and of the target."""

METHODS = "GET, POST, DELETE"
HEADERS = (
    "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, X-API-Key, X-Client-ID, X-Correlation-ID, "
    "X-Request-ID, X-Tenant-ID, X-Trace-ID, X-User-ID"
)
EXPOSED = "Location, Retry-After, X-Request-ID"


def headers_of(scope: Scope) -> dict[str, str]:
    """Header fields by their lower-case names; of repeated ones the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def check_head(scope: Scope) -> None:
    """What no honest client sends.

    Raises:
        HttpError: 431, too large; 400, two lengths, of which the next server may believe the other one.
    """
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size + len(scope["raw_path"]) + len(scope["query_string"]) > MAX_HEAD:
        raise refused(ErrorCode.INVALID_ARGUMENT, f"the headers are over {MAX_HEAD} bytes", status=431)
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
        raise refused(ErrorCode.INVALID_ARGUMENT, "Transfer-Encoding excludes Content-Length, and HTTP/1.0")


class Access:
    """The checks of one gateway."""

    def __init__(self, gateway: Gateway) -> None:
        options = gateway.options
        self._gateway = gateway
        self._ring = KeyRing(options.keys)
        self._any_host = not options.loopback and not options.hosts
        self._hosts = {name.lower() for name in (*options.hosts, options.host)}
        self._origins = frozenset(options.cors)

    def check_host(self, headers: Mapping[str, str]) -> None:
        """A name that leads here may belong to a page that wants to reach into this machine (DNS rebinding).

        Raises:
            HttpError: 421, we are not known by that name.
        """
        if self._any_host:
            return
        name = _host_name(headers.get("host", ""))
        if name not in self._hosts and not (self._gateway.options.loopback and is_loopback(name)):
            raise refused(ErrorCode.PERMISSION_DENIED, 'unknown Host; if it is yours: http.hosts = ["…"]', status=421)

    def check_origin(self, headers: Mapping[str, str]) -> None:
        """Without keys, being able to reach us is all it takes, and any page in a browser here is: so pages of others
        may not.

        Raises:
            HttpError: 403, the page is neither ours nor allowed.
        """
        origin = headers.get("origin")
        if origin is None or not self._gateway.options.open or origin in self._origins:
            return
        if origin.partition("://")[2] != headers.get("host", ""):  # a proxy may have taken TLS off: no scheme
            raise refused(ErrorCode.PERMISSION_DENIED, "pages of other origins may not call; see http.cors")

    def authenticate(self, headers: Mapping[str, str]) -> Caller | None:
        """Who calls; None when no token is given, though one is needed.

        Raises:
            HttpError: 401, nobody has this token.
        """
        if self._gateway.options.open:
            return self._gateway.holder(self._gateway.options.anonymous)
        token = _token(headers)
        if not token:
            return None
        key = self._ring.find(token)
        if key is None:
            raise unauthenticated()
        return self._gateway.holder(key)

    def cors(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Header fields that let a page of an allowed origin read the answer."""
        origin = headers.get("origin", "")
        if not self._origins:
            return {}
        if origin not in self._origins:
            return {"vary": "Origin"}
        return {
            "access-control-allow-origin": origin,
            "access-control-expose-headers": EXPOSED,
            "vary": "Origin",
        }

    def preflight(self, scope: Scope, headers: Mapping[str, str]) -> dict[str, str] | None:
        """The answer to a browser that asks whether a page may call; None: it asks something else."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        allowed = self.cors(headers)
        if "access-control-allow-origin" in allowed:
            allowed |= {
                "access-control-allow-methods": METHODS,
                "access-control-allow-headers": HEADERS,
                "access-control-max-age": "600",
            }
        return allowed


def is_public(path: str) -> bool:
    """Whether no key is needed."""
    return path in PUBLIC or is_page(path)


def is_page(path: str) -> bool:
    """Whether it is for people, not for programs."""
    return path == PAGES or path.startswith(f"{PAGES}/")


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _host_name(host: str) -> str:
    """The name in a Host field, without the port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host

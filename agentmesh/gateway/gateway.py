"""The gateway: what all its routes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection

from agentmesh.client import Client
from agentmesh.codes import ErrorCode
from agentmesh.errors import HttpError
from agentmesh.gateway.errors import refused
from agentmesh.gateway.limits import Usage
from agentmesh.gateway.metrics import GatewayMetrics
from agentmesh.gateway.options import GatewayOptions, KeyOptions
from agentmesh.metrics import metrics_of
from agentmesh.subjects import Subjects
from agentmesh.transport import Transport

IDENTITY = "http"
"""The sender that agents see."""
CALL = "agentmesh.call"
"""Where the scope of a request has its `Call`."""


@dataclass(frozen=True)
class Caller:
    """Who makes a request: what its key says, and never what the request says."""

    name: str
    """Of the key."""
    tenant: str
    usage: Usage

    def check_tenant(self, tenant: str | None) -> None:
        """A request may repeat its tenant, and no more.

        Raises:
            HttpError: 403, it names another one.
        """
        if tenant and tenant != self.tenant:
            raise refused(
                ErrorCode.PERMISSION_DENIED, "this key is of another tenant; leave the tenant out of the request"
            )


@dataclass
class Call:
    """One request, from its first check to the line in the log."""

    request_id: str
    trace_id: str = ""
    path: str = ""
    caller: Caller | None = None
    rejected: bool = True
    """Until all checks have let it through."""


class Gateway:
    """See the module. One per process.

    Args:
        options: How it listens, whom it lets in, what it bounds.
        transport: The connection; stays open when the gateway stops.
        tenant: Whose agents it serves, where a key says nothing else.
        agents: Names of those that are to run; ready when they do.
    """

    def __init__(
        self, options: GatewayOptions, transport: Transport, tenant: str, *, agents: Iterable[str] = ()
    ) -> None:
        self.options = options
        self.transport = transport
        self.tenant = tenant
        self.agents = frozenset(agents)
        self.metrics = GatewayMetrics(metrics_of(transport))
        self.shared: dict[str, Any] = {}
        """What its routes have in common, by name."""
        self.shutdown = asyncio.Event()
        """Set when the gateway stops: every open stream ends then."""
        self.abandoned = False
        """What was still under way was told that there is no time for it."""
        self._running: set[asyncio.Task[Any]] = set()
        self._clients: dict[str, Client] = {}
        self._callers: dict[str, Caller] = {}

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """The task at hand handles a request, and is cancelled when the time of a stopping gateway is over."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        finally:
            self._running.discard(task)

    def abandon(self) -> None:
        """Have everything that is under way answered with 503."""
        self.abandoned = True
        for task in self._running:
            task.cancel()

    def client(self, tenant: str) -> Client:
        """The verbs, for a tenant."""
        if tenant not in self._clients:
            self._clients[tenant] = Client(self.transport, Subjects(tenant), IDENTITY)
        return self._clients[tenant]

    def caller(self, request: HTTPConnection) -> Caller:
        """Who makes this request.

        Raises:
            HttpError: 401, nobody who is known.
        """
        call: Call = request.scope[CALL]
        if call.caller is None:
            raise unauthenticated()
        return call.caller

    def knows(self, request: HTTPConnection) -> bool:
        """Whether it is known who calls, for what is answered to anybody, but not in full."""
        call: Call = request.scope[CALL]
        return call.caller is not None

    def request_id(self, request: HTTPConnection) -> str:
        """The id of a request, in its answer and in the log."""
        call: Call = request.scope[CALL]
        return call.request_id

    def holder(self, key: KeyOptions) -> Caller:
        """The caller with a key; always the same one, since it counts."""
        if key.name not in self._callers:
            self._callers[key.name] = Caller(key.name, key.tenant or self.tenant, Usage(key))
        return self._callers[key.name]

    @contextlib.asynccontextmanager
    async def stream_slot(self, caller: Caller) -> AsyncIterator[None]:
        """Hold it while a stream is open; enter it before the answer begins.

        Raises:
            HttpError: 429, the key has as many open as it may.
        """
        async with caller.usage.stream():
            self.metrics.stream(1)
            try:
                yield
            finally:
                self.metrics.stream(-1)

    def timeout(self, route: str, wanted: float | None = None) -> float:
        """Seconds a request may take.

        Args:
            route: Method and path, such as `POST /ai/llm/infer`, with path parameters as in its declaration.
            wanted: What the caller asks for; never more than the route allows.
        """
        most = self.options.routes.get(route, self.options.timeout)
        return most if wanted is None else min(wanted, most)


def unauthenticated() -> HttpError:
    """Says nothing about what was wrong with the token."""
    error = refused(
        ErrorCode.UNAUTHENTICATED, "a valid token is needed: Authorization: Bearer TOKEN, or X-API-Key: TOKEN"
    )
    error.headers["WWW-Authenticate"] = "Bearer"
    return error
